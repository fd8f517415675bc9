"""Lightning's limits, intervals and callbacks reach the Trainer, and schedules know the length of the run."""

import pytest

from ssl_asr.errors import ConfigError
from ssl_asr.training.averaging import final_checkpoints
from tests.training.toy_runs import build, toy_overrides


def built(toy_checkpoints, toy_corpus, folder, *overrides):
    return build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), *overrides)


@pytest.mark.parametrize(
    ("overrides", "updates"),
    [
        (["trainer.limit_train_batches=3", "trainer.accumulate_grad_batches=2"], 4),
        (["trainer.limit_train_batches=0.5"], None),
        (["trainer.fast_dev_run=2", "trainer.accumulate_grad_batches=2"], 1),
        (["trainer.fast_dev_run=true"], 1),
    ],
)
def test_schedules_end_with_the_run_under_limits(toy_checkpoints, toy_corpus, tmp_path, overrides, updates):
    run = built(toy_checkpoints, toy_corpus, tmp_path, *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == run.module.total_updates
    assert updates is None or run.module.total_updates == updates


def test_validation_happens_within_an_epoch(toy_checkpoints, toy_corpus, tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Counter(Callback):
        count = 0

        def on_validation_end(self, trainer, pl_module):
            self.count += 1

    run = built(toy_checkpoints, toy_corpus, tmp_path, "trainer.val_check_interval=1", "trainer.max_epochs=1")
    counter = Counter()
    run.trainer.callbacks.append(counter)
    run.trainer.fit(run.module, datamodule=run.data)
    assert counter.count == run.trainer.global_step > 1


def test_callbacks_compose_and_run(toy_checkpoints, toy_corpus, tmp_path):
    run = built(
        toy_checkpoints,
        toy_corpus,
        tmp_path,
        "callbacks=[early_stopping,lr_monitor]",
        "callbacks.early_stopping.patience=0",
        "callbacks.early_stopping.min_delta=1000",
        "logger=csv",
        "trainer.max_epochs=9",
        "optimizers.encoder.layer_decay=0.5",
    )
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.current_epoch == 2, "the second validation stops the run"
    header = (tmp_path / "metrics" / "metrics.csv").read_text().splitlines()[0]
    assert "lr/encoder/pg1" in header


def test_a_profiler_writes_into_the_run_folder(toy_checkpoints, toy_corpus, tmp_path):
    run = built(toy_checkpoints, toy_corpus, tmp_path, "trainer.profiler=simple", "trainer.max_epochs=1")
    run.trainer.fit(run.module, datamodule=run.data)
    assert any("Total" in path.read_text() for path in (tmp_path / "profile").iterdir())


def test_defaults_leave_lightning_at_its_own(toy_checkpoints, toy_corpus, tmp_path):
    trainer = built(toy_checkpoints, toy_corpus, tmp_path).trainer
    assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches) == (1.0, 1.0, 1.0)
    assert (trainer.val_check_interval, trainer.num_sanity_val_steps, trainer.fast_dev_run) == (1.0, 0, False)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.limit_train_batches=0.001", "trainer.limit_train_batches: is 0.001, which leaves none of the"),
        ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches: is 0.001, which leaves none of the"),
        ("trainer.limit_test_batches=0.001", "trainer.limit_test_batches: is 0.001, which leaves none of the"),
        ("trainer.val_check_interval=1000", "trainer.val_check_interval: is 1000, but an epoch has"),
    ],
)
def test_limits_that_leave_nothing_raise_config_error(toy_checkpoints, toy_corpus, tmp_path, override, key):
    with pytest.raises(ConfigError, match=f"^{key}"):
        built(toy_checkpoints, toy_corpus, tmp_path, override)


def test_average_of_best_checkpoints_needs_a_validation(toy_checkpoints, toy_corpus, tmp_path):
    with pytest.raises(ConfigError, match="^trainer.average_best: needs a validation"):
        built(toy_checkpoints, toy_corpus, tmp_path, "trainer.limit_val_batches=0", "trainer.average_best=2")


def test_checkpoints_of_an_earlier_run_are_not_tested(toy_checkpoints, toy_corpus, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"of another run")
    run = built(toy_checkpoints, toy_corpus, tmp_path, "trainer.fast_dev_run=1")
    run.trainer.fit(run.module, datamodule=run.data)
    assert final_checkpoints(run.trainer, tmp_path / "checkpoints") == {"": None}
    assert not (tmp_path / "predictions").exists()
