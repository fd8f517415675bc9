"""Updates that the device decides: the same training as if the host decided, and no wait for the newest gradients."""

import os

import pytest
import torch
from lightning import Callback

from ssl_asr.decoding.host_copy import HostCopy
from ssl_asr.errors import TrainingError
from ssl_asr.training import pending
from ssl_asr.training.csv_log import read_curves
from tests.ranks import on_ranks
from tests.training.toy_runs import build, toy_overrides
from tests.waits import count_waits

# Nothing is written but the first and the last update of an epoch.
RARELY = ["trainer.log_every_n_steps=1000", "data.max_batch_size=1", "trainer.max_epochs=2", "freeze=false"]


def decided_by(monkeypatch, side):
    """Let the host or the device decide, also on a CPU."""
    monkeypatch.setattr(pending, "DEVICE_TYPES", frozenset({"cpu"} if side == "device" else ()))


def make_loss_nan_in(run, batches):
    """The loss of these training batches, counted over the run, is not a number."""
    plain, seen = run.module.loss, []

    def loss(batch, out=None):
        found = plain(batch, out)
        if not run.module.training:
            return found
        seen.append(batch.ids)
        bad = len(seen) - 1 in batches
        return type(found)(found.total * float("nan"), found.count) if bad else found

    run.module.loss = loss


class Watch(Callback):
    """Notes counts and rates where others may look at them: at the ends of batches and epochs, and at validations."""

    def __init__(self):
        self.late, self.seen = 0, []

    def _note(self, trainer, module, where):
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.seen.append((where, trainer.global_step, module.nonfinite_updates, rates))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.late += module._pending is not None

    def on_train_epoch_end(self, trainer, module):
        self._note(trainer, module, "epoch")

    def on_validation_start(self, trainer, module):
        self._note(trainer, module, "validation")

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self._note(trainer, module, f"checkpoint of update {checkpoint['global_step']}")


def trained(folder, overrides, bad=()):
    run = build(folder, *overrides)
    make_loss_nan_in(run, set(bad))
    watch = Watch()
    run.trainer.callbacks.append(watch)
    run.trainer.fit(run.module, datamodule=run.data)
    return run, watch


def states(run):
    return [optimizer.state_dict() for optimizer in run.trainer.optimizers], {
        name: value.clone() for name, value in run.module.state_dict().items()
    }


def assert_equal(one, other):
    torch.testing.assert_close(states(one), states(other), rtol=0, atol=0)
    assert one.trainer.global_step == other.trainer.global_step
    assert one.module.nonfinite_updates == other.module.nonfinite_updates
    schedulers = [[c.scheduler.state_dict() for c in run.trainer.lr_scheduler_configs] for run in (one, other)]
    assert schedulers[0] == schedulers[1]


SETTINGS = {
    "all finite": ([], []),
    # Batch 0 is written at once, 9 is the last one of the first epoch.
    "first, one, two in a row, and the last of an epoch": ([0, 3, 5, 6, 9], []),
    "before a validation in the epoch": ([2, 4], ["trainer.val_check_interval=5"]),
    "before a checkpoint": ([3, 7], ["trainer.checkpoint_every_n_updates=4"]),
    "before the last update": ([11], ["trainer.max_steps=12"]),
    "windows": ([1, 6], ["trainer.accumulate_grad_batches=2"]),
    "no clip, written often": ([4], ["trainer.gradient_clip_val=null", "trainer.log_every_n_steps=3"]),
    "weights in bf16": ([4], ["trainer.precision=bf16-true"]),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_device_decides_as_the_host_does(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, setting):
    bad, more = SETTINGS[setting]
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY, "logger=csv", *more]
    overrides += ["scheduler@schedulers.rest=cosine", "scheduler@schedulers.encoder=linear"]
    runs = {}
    for side in ("host", "device"):
        decided_by(monkeypatch, side)
        runs[side] = trained(tmp_path / side, overrides, bad)
    (host, host_watch), (device, device_watch) = runs["host"], runs["device"]
    assert host_watch.late == 0 < device_watch.late
    assert device.module.nonfinite_updates == len(bad)
    assert_equal(device, host)
    assert device_watch.seen == host_watch.seen
    curves = [read_curves(tmp_path / side) for side in runs]
    assert curves[0].keys() == curves[1].keys()
    for name in ("train/loss", "train/grad_norm", "lr/rest"):
        torch.testing.assert_close(torch.tensor(curves[0][name]), torch.tensor(curves[1][name]), equal_nan=True)


def test_a_window_without_weight_makes_no_update(toy_checkpoints, toy_corpus, tmp_path, monkeypatch):
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY]
    runs = []
    for side in ("host", "device"):
        decided_by(monkeypatch, side)
        run = build(tmp_path / side, *overrides)
        plain = run.module.loss

        def loss(batch, out=None, run=run, plain=plain):
            found = plain(batch, out)
            empty = run.module.training and batch.ids == ["train3"]
            return type(found)(found.total * 0, found.count * 0) if empty else found

        run.module.loss = loss
        run.trainer.fit(run.module, datamodule=run.data)
        runs.append(run)
    assert runs[1].module.nonfinite_updates == 0
    # One in each of two epochs.
    assert runs[1].trainer.global_step == runs[1].module.total_updates - 2
    assert_equal(*runs)


def test_failed_updates_are_named_with_their_own_utterances(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, capsys):
    decided_by(monkeypatch, "device")
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY]
    run = build(tmp_path, *overrides)
    plain = run.module.loss

    def loss(batch, out=None):
        found = plain(batch, out)
        bad = run.module.training and batch.ids == ["train3"]
        return type(found)(found.total * float("nan"), found.count) if bad else found

    run.module.loss = loss
    run.trainer.fit(run.module, datamodule=run.data)
    lines = [line for line in capsys.readouterr().out.splitlines() if "update skipped" in line]
    assert lines == ["update skipped, a loss is not finite; utterances: train3"] * 2


def test_too_many_failed_updates_end_the_run(toy_checkpoints, toy_corpus, tmp_path, monkeypatch):
    decided_by(monkeypatch, "device")
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY, "trainer.max_nonfinite=2"]
    with pytest.raises(TrainingError, match="2 consecutive updates were not finite; the last had utterances: train"):
        trained(tmp_path, overrides, bad=[2, 3, 4, 5])


def test_an_update_waits_for_the_update_before_it_only(toy_checkpoints, toy_corpus, tmp_path, monkeypatch):
    decided_by(monkeypatch, "device")
    run = build(tmp_path, *toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY, "data.dev=null")
    reads, waits, forwards = [], [], []
    plain_read, plain_update, plain_loss = HostCopy.read, run.module._update, run.module.loss_parts

    def loss_parts(batch):
        forwards.append(batch)
        return plain_loss(batch)

    def read(copy):
        reads.append(len(forwards))
        return plain_read(copy)

    def update():
        with count_waits() as found:
            plain_update()
        waits.append(sum(found.values()))

    monkeypatch.setattr(HostCopy, "read", read)
    run.module.loss_parts, run.module._update = loss_parts, update
    run.trainer.fit(run.module, datamodule=run.data)
    updates, each = len(forwards), len(forwards) // 2
    # The first two updates, which may be written, and the last ones of the two epochs are read at once. All others are
    # read by the next one, after its forward and backward passes.
    at_once = {1, 2, each, updates}
    assert reads == [update + (update not in at_once) for update in range(1, updates + 1)]
    # One wait for each read, and no other.
    assert sum(waits) == updates
    assert waits[:4] == [1, 1, 0, 1]


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.ema_decay=0.9"],
        ["optimizer@optimizers.rest=adadelta"],
        ["freeze_policy=gradual_thaw"],
        ["trainer.precision=16-mixed"],
    ],
    ids=["average", "optimizer", "thaws", "fp16"],
)
def test_the_host_decides_where_the_device_cannot(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, more):
    decided_by(monkeypatch, "device")
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY, *more]
    run, watch = trained(tmp_path, [one for one in overrides if not ("thaw" in str(more) and one == "freeze=false")])
    assert watch.late == 0
    assert run.trainer.global_step > 4


def _two_ranks(side, folder, overrides):
    pending.DEVICE_TYPES = frozenset({"cpu"} if side == "device" else ())
    run = build(folder, *overrides)
    make_loss_nan_in(run, {2} if os.environ["RANK"] == "1" else set())
    run.trainer.fit(run.module, datamodule=run.data)
    torch.save(states(run), folder / f"{run.trainer.global_rank}.pt")
    return run.trainer.global_step, run.module.nonfinite_updates


def test_two_ranks_decide_as_their_hosts_do(toy_checkpoints, toy_corpus, tmp_path):
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *RARELY, "trainer.max_epochs=1"]
    overrides += ["trainer.devices=2", "trainer.strategy=ddp", "data.dev=null"]
    host, device = (on_ranks(_two_ranks, 2, side, tmp_path / side, overrides) for side in ("host", "device"))
    for rank in (0, 1):
        assert device[rank] == host[rank]
        assert device[rank][1] == 1
        found, expected = (torch.load(tmp_path / side / f"{rank}.pt") for side in ("device", "host"))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_updates_do_not_wait_on_a_gpu(toy_checkpoints, toy_corpus, tmp_path):
    overrides = [one for one in toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus) if "accelerator" not in one]
    run = build(tmp_path, *overrides, *RARELY, "trainer.accelerator=gpu", "data.dev=null")
    plain, late = run.module._update, []

    def update():
        # The first two and the last ones of the epochs are read at once.
        watched = run.trainer.global_step > 1 and not run.trainer.is_last_batch
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            plain()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        late.append(run.module._pending is not None)

    run.module._update = update
    run.trainer.fit(run.module, datamodule=run.data)
    assert sum(late) == len(late) - 4
