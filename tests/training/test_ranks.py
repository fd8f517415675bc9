"""Ranks against one process, with an optimizer that feels the scale of gradients."""

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from ssl_asr.data import sampler
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.training.toy_runs import build, toy_overrides

# Plain SGD: the weights move by the learning rate times the gradient, whose scale AdamW would hide.
SGD = [
    "optimizer@optimizers.encoder=sgd",
    "optimizer@optimizers.rest=sgd",
    "optimizers.encoder.lr=0.00005",
    "optimizers.rest.lr=0.0001",
    "scheduler@schedulers.encoder=constant",
    "scheduler@schedulers.rest=constant",
    "schedulers.encoder.warmup=0",
    "schedulers.rest.warmup=0",
    "freeze=false",
    "head.dropout=0.0",
    "data.max_batch_s=1.6",
    "trainer.max_epochs=1",
    "data.test={}",
    "data.dev=null",
]
# Number of ranks, batches in a window, and further settings. Norms of the gradients are about 1900 and 4200, so the
# clip binds, and would not bind if gradients were a third.
SETTINGS = {
    "no clip": (2, 1, ["trainer.gradient_clip_val=null"]),
    "a clip that binds, accumulation": (3, 2, ["trainer.gradient_clip_val=1500"]),
    "fp16, no clip, accumulation": (2, 2, ["trainer.gradient_clip_val=null", "trainer.precision=16-mixed"]),
}


@pytest.fixture
def no_dropout(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    monkeypatch.setattr(GradScaler, "__init__", _scaler_of_1024(GradScaler.__init__))


def _scaler_of_1024(plain):
    """Overflows in search of a scale would leave out updates, other ones on other numbers of ranks."""
    return lambda self, device="cpu", **more: plain(self, device, **{**more, "init_scale": 1024.0})


def trained(folder, overrides):
    run = build(folder, *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    return last["state_dict"], last["global_step"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_ranks_train_the_weights_of_one_process(
    toy_checkpoints, toy_corpus, tmp_path, monkeypatch, no_dropout, setting
):
    ranks, accumulate, more = SETTINGS[setting]
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), *SGD, *more]
    # Ranks are forked from this process, which has imported everything.
    strategy = [
        f"trainer.devices={ranks}",
        "trainer.strategy=ddp_fork",
        f"trainer.accumulate_grad_batches={accumulate}",
    ]
    several, updates = trained(tmp_path / "several", [*overrides, *strategy])
    # One process that gets the batches of all ranks in turn.
    plan = sampler.plan_epoch
    monkeypatch.setattr(sampler, "plan_epoch", lambda *a, **k: plan(*a, **{**k, "world_size": ranks}))
    start = build(tmp_path / "start", *overrides).module.state_dict()
    one, alone = trained(tmp_path / "one", [*overrides, f"trainer.accumulate_grad_batches={ranks * accumulate}"])
    assert alone == updates > 1
    moved = max(float((one[name] - value).abs().max()) for name, value in start.items())
    assert moved > 1e-2
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, atol=0.005 * moved, rtol=0, msg=name)


def test_ids_of_the_rank_that_was_not_finite_are_named(toy_checkpoints, toy_corpus, tmp_path, capfd):
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), "freeze=true", "data.max_batch_s=1.6"]
    run = build(tmp_path, *overrides, "trainer.devices=2", "trainer.strategy=ddp_fork", "trainer.max_steps=1")
    plain, of_second = run.module.loss, run.data.train_sampler(0, 1, 2).batches[0]

    def loss(batch, out=None):
        found = plain(batch, out)
        bad = run.trainer.global_rank == 1 and run.trainer.global_step == 0 and run.module.training
        return (
            type(found)(found.total * float("nan"), found.count) if bad and not run.module.nonfinite_updates else found
        )

    run.module.loss = loss
    run.trainer.fit(run.module, datamodule=run.data)
    ids = ", ".join(run.data.train_kept[index].id for index in of_second)
    assert f"update skipped, a loss is not finite; utterances of rank 1: {ids}\n" in capfd.readouterr().out
