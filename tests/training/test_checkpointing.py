"""Checkpoints: plain types, and resumed runs that equal uninterrupted ones."""

import csv

import pytest
import torch

from ssl_asr.build.start import start_run
from ssl_asr.console import Notice
from ssl_asr.errors import ConfigError
from ssl_asr.training.checkpoint_files import KEY
from ssl_asr.training.interruption import LastCheckpoint
from tests.training.toy_runs import build, resolved, toy_overrides


class Stop(Exception):
    """Ends a run after an update."""


THAW = ["freeze_policy=gradual_thaw", "freeze_policy.unit=update", "freeze_policy.wait=4"]


@pytest.mark.parametrize(
    ("stop_at", "workers", "policy"),
    [(2, 0, ["freeze=false"]), (4, 2, THAW), (5, 0, THAW)],
    ids=["all", "thaws", "thaw"],
)
def test_resumed_run_equals_uninterrupted_run(toy_checkpoints, toy_corpus, tmp_path, stop_at, workers, policy):
    """Stopped within an epoch, with dropout, speed perturbation and warm-up, and resumed at another random state.

    Layers thaw at the update where the run stops, and before it.
    """
    overrides = [
        *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus),
        "trainer.max_epochs=3",
        "trainer.checkpoint_every_n_updates=1",
        f"data.num_workers={workers}",
        *policy,
        "optimizers.encoder.lr=0.01",
        "head.dropout=0.3",
        "data.max_batch_s=2.5",
        "data.speed_factors=[0.9,1.0,1.1]",
    ]
    whole = build(tmp_path / "whole", *overrides)
    whole.trainer.fit(whole.module, datamodule=whole.data)
    per_epoch = len(whole.data.train_sampler(0))
    assert per_epoch > 3

    stopped = build(tmp_path / "stopped", *overrides)
    last = [c for c in stopped.trainer.checkpoint_callbacks if c.filename == "last"][0]
    plain = last.on_train_batch_end

    def on_train_batch_end(trainer, *arguments, **more):
        plain(trainer, *arguments, **more)
        if trainer.global_step == stop_at:
            raise Stop

    last.on_train_batch_end = on_train_batch_end
    with pytest.raises(Stop):
        stopped.trainer.fit(stopped.module, datamodule=stopped.data)

    torch.rand(17)
    resumed = build(tmp_path / "resumed", *overrides)
    torch.rand(5)
    ids = []
    plain_loss = resumed.module.loss
    resumed.module.loss = lambda batch, out=None: (
        ids.append(batch.ids) if resumed.module.training else None,
        plain_loss(batch, out),
    )[1]
    resumed.trainer.fit(
        resumed.module, datamodule=resumed.data, ckpt_path=str(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    )
    assert resumed.trainer.global_step == whole.trainer.global_step == whole.module.total_updates
    assert len(ids) == whole.trainer.global_step - stop_at, "no batch is lost or repeated"
    found = resumed.module.state_dict()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(found[name], value), name
    for a, b in zip(resumed.trainer.optimizers, whole.trainer.optimizers, strict=True):
        assert [g["lr"] for g in a.param_groups] == [g["lr"] for g in b.param_groups]


def test_resumed_finished_run_makes_no_update_and_says_so(toy_checkpoints, toy_corpus, tmp_path):
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), "freeze=false"]
    run = build(tmp_path / "a", *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    said = f"has made all of its {run.trainer.global_step} updates. It is only tested again"
    with pytest.warns(Notice, match=said):
        again, checkpoint = start_run(resolved(*overrides, f"resume={last}"), tmp_path / "b", None)
    assert checkpoint == last
    again.trainer.fit(again.module, datamodule=again.data, ckpt_path=str(last))
    assert again.trainer.global_step == run.trainer.global_step
    for name, value in run.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    with pytest.raises(ConfigError, match=r"data.max_batch_s: is 2.0, but this run was trained with 3.0, and has made"):
        start_run(resolved(*overrides, "data.max_batch_s=2.0", f"resume={last}"), tmp_path / "c", None)
    assert not (tmp_path / "c" / "config.yaml").exists()


def test_checkpoints_have_only_plain_types(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"))
    run.trainer.fit(run.module, datamodule=run.data)
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        saved = checkpoint[KEY]
        assert saved["config"]["freeze_policy"] == {"_target_": "ssl_asr.models.freezing.TrainAll"}
        assert saved["tokenizer"]["kind"] == "whisper"
        assert saved["model"]["generation"]["begin_suppress_tokens"] == [256, 7]
        assert saved["model"]["window"] == "real"


def test_a_longer_run_follows_its_own_schedule_from_the_first_update(toy_checkpoints, toy_corpus, tmp_path):
    """A checkpoint has the rate that the shorter schedule gave the next update: zero, at its end."""

    def rates(folder, epochs, resume=None):
        more = ["trainer.max_epochs=" + str(epochs), "logger=csv", "freeze=true", "schedulers.rest.warmup=0"]
        run = build(folder, *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), *more)
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resume)
        rows = list(csv.DictReader(open(folder / "metrics" / "metrics.csv")))
        return {int(row["step"]): float(row["lr/rest"]) for row in rows if row.get("lr/rest")}

    short = rates(tmp_path / "short", 1)
    longer = rates(tmp_path / "longer", 2, resume=tmp_path / "short" / "checkpoints" / "last.ckpt")
    whole = rates(tmp_path / "whole", 2)
    assert min(short.values()) > 0, "the rate of an update, not of the one after it"
    assert longer == {step: rate for step, rate in whole.items() if step in longer}
    assert len(longer) == len(short) == len(whole) / 2


@pytest.mark.filterwarnings("error")
def test_a_last_checkpoint_of_a_moved_folder_is_restored_without_a_word(tmp_path):
    before, after = (LastCheckpoint(tmp_path / name, every_n_updates=None) for name in ("before", "after"))
    before.best_model_path = str(tmp_path / "before" / "last.ckpt")
    after.load_state_dict(before.state_dict())
    assert after.dirpath == str(tmp_path / "after")
    assert after.best_k_models == {}
