"""``trainer.precision=bf16-true``: weights in bfloat16 with float32 masters."""

import re
from contextlib import nullcontext

import pytest
import torch

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import ConfigError, UserError
from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.training.step_memory import StepMemory
from tests.training.toy_runs import build, resolved, toy_overrides

BF16 = "trainer.precision=bf16-true"


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    return [*toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), BF16, "data.dev=null"]


class Recorded:
    """The gradients, counts and learning rates of the updates of a run."""

    def __init__(self, run, bad_loss):
        self.run, self.updates, self.counts, self.batches = run, [], [], 0
        module, plain, start = run.module, run.module.loss, run.module.on_fit_start

        def loss(batch, out=None):
            found = plain(batch, out)
            self.batches += 1
            self.counts.append(float(found.count))
            return type(found)(found.total * (float("nan") if self.batches == bad_loss else 1.0), found.count)

        def on_fit_start():
            start()
            take = module.masters.take_gradients

            def taken():
                self.record()
                take()

            module.masters.take_gradients = taken

        module.loss, module.on_fit_start = loss, on_fit_start

    def record(self):
        """Called before each update."""
        named = {name: p for name, p in self.run.module.named_parameters() if p.grad is not None}
        assert {p.grad.dtype for p in named.values()} == {torch.float32}
        assert {p.dtype for p in named.values()} == {torch.bfloat16}
        rates = [[group["lr"] for group in one.param_groups] for one in self.run.trainer.optimizers]
        grads = {name: p.grad.clone() for name, p in named.items()}
        self.updates.append((grads, sum(self.counts), rates))
        self.counts = []


def _decay(group):
    return {"weight_decay": group["weight_decay"]}


def test_masters_equal_a_float32_loop_over_the_same_gradients(overrides, tmp_path):
    """With accumulation, a clip over both optimizers, weight decay, warm-up, and an update that is skipped."""
    overrides = [*overrides, "freeze=false", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5"]
    overrides += ["optimizers.encoder.lr=0.01", "data.max_batch_s=2", "optimizers.rest.lr=0.02"]
    run = build(tmp_path, *overrides)
    weights = {name: p.detach().clone() for name, p in run.module.named_parameters()}
    groups = [one.param_groups for one in run.module.configure_optimizers()[0]]
    names = {p: name for name, p in run.module.named_parameters()}
    own = [[([names[p] for p in group["params"]], group) for group in side] for side in groups]
    recorded = Recorded(run, bad_loss=4)
    run.trainer.fit(run.module, datamodule=run.data)

    trained = {name: weights[name].requires_grad_() for side in own for group in side for name in group[0]}
    loops = []
    for side in own:
        params = [{"params": [trained[name] for name in parts], **_decay(group)} for parts, group in side]
        settings = {key: side[0][1][key] for key in ("betas", "eps")}
        loops.append(torch.optim.AdamW(params, foreach=False, **settings))
    skipped = 0
    for grads, count, rates in recorded.updates:
        norm = torch.sqrt(sum((grad.double() ** 2).sum() for grad in grads.values())) * 64 / count
        if not torch.isfinite(norm):
            skipped += 1
            continue
        for name, grad in grads.items():
            trained[name].grad = grad * (64 / count * min(1.0, 0.5 / float(norm + 1e-6)))
        for loop, side in zip(loops, rates, strict=True):
            for group, rate in zip(loop.param_groups, side, strict=True):
                group["lr"] = rate
            loop.step()
    assert (skipped, run.module.nonfinite_updates) == (1, 1)
    assert len(recorded.updates) - skipped == run.trainer.global_step >= 4

    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    rounded = dict(run.module.named_parameters())
    for name, value in trained.items():
        found = checkpoint["state_dict"][name]
        assert found.dtype == torch.float32, name
        torch.testing.assert_close(found, value.detach(), rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(rounded[name], found.to(rounded[name].dtype)), name
    changes = [(rounded[name].float() - checkpoint["state_dict"][name]).abs().max() for name in trained]
    assert max(changes) > 0, "masters have more digits than the weights"
    restored = restore_module(checkpoint)
    assert all(torch.equal(p, checkpoint["state_dict"][name]) for name, p in restored.named_parameters())


class Stop(Exception):
    """Ends a run after an update."""


THAW = ["freeze_policy=gradual_thaw", "freeze_policy.unit=update", "freeze_policy.wait=1"]


@pytest.mark.parametrize("policy", [["freeze=false"], ["freeze_policy=lora"], THAW], ids=["all", "lora", "thaws"])
def test_resumed_run_equals_the_whole_run(overrides, tmp_path, policy):
    """Also of the states of optimizers, and of checkpoints without frozen weights."""
    overrides = [*overrides, *policy, "head.dropout=0.3", "trainer.checkpoint_every_n_updates=1"]
    whole = build(tmp_path / "whole", *overrides)
    whole.trainer.fit(whole.module, datamodule=whole.data)
    stopped = build(tmp_path / "stopped", *overrides)
    plain = stopped.module.on_train_batch_end

    def on_train_batch_end(*arguments):
        plain(*arguments)
        if stopped.trainer.global_step == 2:
            raise Stop

    stopped.module.on_train_batch_end = on_train_batch_end
    with pytest.raises(Stop):
        stopped.trainer.fit(stopped.module, datamodule=stopped.data)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert 0 < read_checkpoint(last)["global_step"] < whole.trainer.global_step
    resumed = build(tmp_path / "resumed", *overrides)
    resumed.trainer.fit(resumed.module, datamodule=resumed.data, ckpt_path=last)
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "resumed"))
    assert one["global_step"] == other["global_step"]
    assert one.get("frozen") == other.get("frozen")
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], value), name
    for mine, found in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for place, states in mine["state"].items():
            assert all(torch.equal(found["state"][place][key], value) for key, value in states.items())
    # As at the end of a run, which tests a checkpoint, and in `evaluate`, which has float32 weights.
    resumed.module.load_state_dict(resumed.module.with_frozen(other["state_dict"], other))
    if "frozen" in other:
        fresh = build(tmp_path / "fresh", *overrides)
        fresh.module.load_for_inference(other)


def test_memory_is_not_estimated_for_other_weights_than_those_of_training(overrides, tmp_path):
    run = build(tmp_path, *overrides)
    with pytest.raises(ConfigError, match=r"trainer\.precision: is bf16-true, .*=bf16-mixed"):
        StepMemory(run.module, run.data.train_kept, nullcontext, as_cuda=False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["trainer.strategy=ddp", "trainer.devices=2"], r"trainer\.strategy: .*use .*trainer\.precision=bf16-mixed"),
        (["trainer.ema_decay=0.9"], r"trainer\.ema_decay: .*bf16-true"),
        (["data.max_batch_s=auto"], r"data\.max_batch_s: .*bf16-true"),
        (["state_cache=disk", "freeze=true"], r"state_cache: .*bf16-true"),
        (["trainer.precision=16-true"], r"trainer\.precision: is '16-true', expected .*bf16-true"),
        (["trainer.precision=64-true"], r"trainer\.precision: is '64-true'"),
        (["trainer.precision=transformer-engine"], r"trainer\.precision: is 'transformer-engine'"),
    ],
)
def test_what_does_not_work_with_masters_is_refused(overrides, more, said):
    with pytest.raises(UserError, match=re.compile(said, re.DOTALL | re.IGNORECASE)):
        resolved(*overrides, *more)
