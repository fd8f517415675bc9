"""A run that a signal stops is resumed as if it had not been stopped."""

import json
import signal

import pytest
import torch

from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.training.interruption import StopOnSignal
from tests.training.toy_runs import build, toy_overrides

MOMENTS = {
    "after an update": ("on_train_batch_end", 1),
    "before a validation": ("on_train_batch_end", 2),
    "in a validation": ("on_validation_batch_end", 1),
    "in the last validation": ("on_validation_batch_end", -1),
}


@pytest.fixture(scope="module")
def overrides(toy_checkpoints, toy_corpus):
    """Validates twice an epoch, with several dev batches, dropout, and averaged weights in validation."""
    return [
        *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus),
        "data.max_batch_s=100",
        "data.max_batch_size=3",
        "data.eval_batch_s=1",
        "trainer.val_check_interval=2",
        "trainer.ema_decay=0.5",
        "trainer.accumulate_grad_batches=1",
        "scheduler@schedulers.rest=plateau",
        "schedulers.rest.patience=0",
        "head.dropout=0.3",
        "logger=csv",
    ]


def stops(run, hook, number, sent=signal.SIGTERM):
    """Let a signal arrive in a hook that is called for the ``number``-th time, from 0."""
    stop = next(each for each in run.trainer.callbacks if isinstance(each, StopOnSignal))
    plain, calls = getattr(stop, hook), []

    def called(*arguments):
        calls.append(None)
        if len(calls) == number + 1:
            stop.interruption.signal = sent
        return plain(*arguments)

    setattr(stop, hook, called)
    return calls


def fit(run, resumed_from=None):
    run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resumed_from)
    return run


def results(folder):
    """What a run leaves behind: weights and scores of both checkpoints, and the texts of the last validation."""
    found = {}
    for name in ("best", "last"):
        checkpoint = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
        scores = [each["best_model_score"] for each in checkpoint["callbacks"].values() if each.get("monitor")]
        found[name] = (checkpoint["global_step"], checkpoint["epoch"], [float(score) for score in scores])
        found[f"{name} weights"] = checkpoint["state_dict"]
    found["dev"] = [json.loads(line) for line in (folder / "predictions" / "dev.jsonl").open()]
    return found


@pytest.fixture(scope="module")
def whole(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = build(folder, *overrides)
    calls = stops(run, "on_validation_batch_end", -5)
    fit(run)
    return results(folder), len(calls)


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_is_stopped_and_resumed_equals_the_whole_run(whole, overrides, tmp_path, moment):
    expected, batches = whole
    hook, number = MOMENTS[moment]
    stopped = build(tmp_path, *overrides)
    stops(stopped, hook, number % batches)
    with pytest.raises(SystemExit) as caught:
        fit(stopped)
    assert caught.value.code == 143
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == stopped.trainer.global_step
    torch.rand(7)
    fit(build(tmp_path, *overrides), last)
    found = results(tmp_path)
    for name, value in expected.items():
        if name.endswith("weights"):
            assert all(torch.equal(found[name][key], weight) for key, weight in value.items()), name
        else:
            assert found[name] == value, name


def test_sanity_validation_is_stopped_and_writes_nothing(overrides, tmp_path):
    run = build(tmp_path, *overrides, "trainer.num_sanity_val_steps=2")
    calls = stops(run, "on_validation_batch_end", 0, signal.SIGUSR1)
    with pytest.raises(SystemExit) as caught:
        fit(run)
    # SIGUSR1 announces SIGTERM.
    assert (caught.value.code, len(calls), run.trainer.global_step) == (143, 1, 0)
    assert not list(tmp_path.rglob("*.ckpt"))
