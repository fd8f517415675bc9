"""Wherever a run ends, its last weights are validated and may become ``best.ckpt``."""

import pytest
from lightning.pytorch.callbacks import Callback

from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.training.toy_runs import build, toy_overrides


class Validations(Callback):
    """Records the number of updates at each validation."""

    def __init__(self):
        self.updates = []

    def on_validation_end(self, trainer, pl_module):
        self.updates.append(trainer.global_step)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("max_steps=3 max_epochs=9", [3]),
        ("max_steps=5 max_epochs=9", [5]),
        ("max_steps=7 max_epochs=9", [5, 7]),
        ("max_epochs=3 check_val_every_n_epoch=2", [10, 15]),
        ("max_epochs=2 check_val_every_n_epoch=5", [10]),
        ("max_epochs=2 val_check_interval=4 check_val_every_n_epoch=null", [4, 8, 10]),
        ("max_epochs=1 val_check_interval=2", [2, 4, 5]),
        ("max_epochs=2", [5, 10]),
        ("max_epochs=1 accumulate_grad_batches=2", [3]),
        ("max_steps=1 max_epochs=1 accumulate_grad_batches=5", [1]),
        ("max_epochs=2 limit_train_batches=2", [2, 4]),
        ("max_epochs=2 limit_val_batches=0", []),
    ],
)
def test_run_ends_with_a_validation(toy_checkpoints, toy_corpus, tmp_path, settings, expected):
    more = [f"trainer.{setting}" for setting in settings.split()]
    run = build(
        tmp_path,
        *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus),
        "freeze=true",
        "data.max_batch_s=100",
        "data.max_batch_size=2",
        *more,
    )
    assert len(run.data.train_sampler(0)) == len(run.data.train_sampler(1)) == 5
    validations = Validations()
    run.trainer.callbacks.insert(0, validations)
    run.trainer.fit(run.module, datamodule=run.data)
    assert validations.updates == expected
    checkpoints = tmp_path / "checkpoints"
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == run.trainer.global_step
    assert (checkpoints / "best.ckpt").is_file() == bool(expected)
    if expected:
        assert read_checkpoint(checkpoints / "best.ckpt")["global_step"] in expected
