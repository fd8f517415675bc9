"""Averaged weights: equal to averages computed by hand."""

import json

import lightning as L
import pytest
import torch

from ssl_asr.errors import UserError
from ssl_asr.training.checkpointing import read_checkpoint
from tests.training.toy_runs import build, config_of, toy_overrides


class Watch(L.Callback):
    """Records the weights after every update and at every validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.trained.append(weights_of(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(weights_of(pl_module))


def weights_of(module):
    return {key: value.detach().clone() for key, value in module.named_parameters()}


def watched(folder, *overrides):
    run = build(folder, *overrides)
    watch = Watch()
    # First, so that it records the trained weights, not the average.
    run.trainer.callbacks.insert(0, watch)
    return run, watch


def assert_same(found, expected):
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5, msg=key)


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    kept = [o for o in toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus) if "max_epochs" not in o]
    return [*kept, "optimizers.rest.lr=0.05", "scheduler@schedulers.rest=constant"]


def test_ema_equals_average_computed_by_hand(overrides, tmp_path):
    run, watch = watched(tmp_path, *overrides, "trainer.ema_decay=0.7", "trainer.max_epochs=2")
    before = weights_of(run.module)
    run.trainer.fit(run.module, datamodule=run.data)
    per_epoch = len(watch.trained) // 2
    average = watch.trained[0]
    for update, weights in enumerate(watch.trained[1:], start=2):
        average = {key: average[key] + 0.3 * (weights[key] - average[key]) for key in weights}
        if update == per_epoch:
            assert_same(watch.validated[0], average)
    assert_same(watch.validated[-1], average)
    assert_same(weights_of(run.module), average)
    assert_same(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"], average)
    moved = max((average[key] - watch.trained[-1][key]).abs().max() for key in average)
    assert moved > 1e-4, "the average differs from the last weights"
    frozen = [key for key, p in run.module.named_parameters() if not p.requires_grad]
    assert frozen
    for key in frozen:
        assert torch.equal(average[key], before[key]), "frozen weights do not change, not even by rounding"
        assert torch.equal(weights_of(run.module)[key], before[key])


def test_resumed_ema_equals_uninterrupted_run(overrides, tmp_path):
    more = ["trainer.ema_decay=0.7", "scheduler@schedulers.encoder=constant"]
    whole = build(tmp_path / "whole", *overrides, *more, "trainer.max_epochs=2")
    whole.trainer.fit(whole.module, datamodule=whole.data)
    half = build(tmp_path / "half", *overrides, *more, "trainer.max_epochs=1")
    half.trainer.fit(half.module, datamodule=half.data)
    rest = build(tmp_path / "rest", *overrides, *more, "trainer.max_epochs=2")
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    rest.trainer.fit(rest.module, datamodule=rest.data, ckpt_path=str(last))
    for key, value in weights_of(whole.module).items():
        assert torch.equal(weights_of(rest.module)[key], value), key


def test_best_checkpoints_are_averaged_and_best_and_average_are_tested(overrides, toy_corpus, run_command, tmp_path):
    more = ["trainer.average_best=2", "trainer.max_epochs=4", "trainer.monitor=val/loss", f"run_dir={tmp_path}"]
    done = run_command("train", *overrides, *more, "logger=csv")
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "checkpoints"
    top = [read_checkpoint(path) for path in folder.glob("top-*.ckpt")]
    assert len(top) == 2
    # A name with "=" would have to be quoted on the command line.
    assert not [path for path in folder.iterdir() if "=" in path.name]
    rows = (tmp_path / "metrics" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    losses = [dict(zip(names, row.split(","), strict=True))["val/loss"] for row in rows[1:]]
    by_epoch = [float(loss) for loss in losses if loss]
    best_two = sorted(range(4), key=by_epoch.__getitem__)[:2]
    assert {checkpoint["epoch"] for checkpoint in top} == set(best_two)
    average = read_checkpoint(folder / "average.ckpt")["state_dict"]
    for key, value in average.items():
        if value.is_floating_point():
            one, other = (checkpoint["state_dict"][key] for checkpoint in top)
            torch.testing.assert_close(value, (one + other) / 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"run", "dev", "dev_average", "test", "test_average"}
    out = tmp_path / "again"
    more = [f"model={folder}/average.ckpt", f"manifest={toy_corpus['test']}", "num_workers=0", f"output_dir={out}"]
    assert run_command("evaluate", *more).returncode == 0
    assert json.loads((out / "results.json").read_text())["test"]["scores"] == results["test_average"]["scores"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.ema_decay=1.0", "trainer.ema_decay: is 1.0"),
        ("trainer.average_best=1", "trainer.average_best: is 1"),
        ("trainer.average_best=3", "trainer.average_best: needs a validation, and there is no dev split"),
    ],
)
def test_invalid_averaging_options_raise_user_error(override, message):
    with pytest.raises(UserError, match=message):
        config_of("data.train=t.jsonl", override)
