"""Wherever a run is killed, the resumed run equals the whole run: both checkpoints, scores, texts and metrics."""

import csv
import json
import shutil
import time
import warnings

import pytest
import torch

from ssl_asr.build.start import start_run
from ssl_asr.console import Notice
from ssl_asr.training import checkpoint_io
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.training.test_interruption import stops
from tests.training.toy_runs import resolved, toy_overrides

EVERY = "trainer.checkpoint_every_n_updates"
# Runs of two or three epochs of five updates.
RUNS = {
    "at the validation of an epoch": [f"{EVERY}=5"],
    "within epochs": [f"{EVERY}=2"],
    "only after epochs": [f"{EVERY}=100"],
    "no validation": [f"{EVERY}=5", "data.dev=null"],
    "validations in an epoch": [f"{EVERY}=3", "trainer.val_check_interval=3"],
    "validations of a number of batches": [f"{EVERY}=5", "trainer.val_check_interval=5"],
    "validations over epochs": [f"{EVERY}=4", "trainer.val_check_interval=4", "trainer.check_val_every_n_epoch=null"],
    "validations every second epoch": [f"{EVERY}=5", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
    "ends in an epoch": [f"{EVERY}=2", "trainer.max_steps=8", "trainer.max_epochs=9"],
    "averages": [f"{EVERY}=5", "trainer.average_best=2", "trainer.max_epochs=3"],
    "plateau": [f"{EVERY}=5", "scheduler@schedulers.rest=plateau", "schedulers.rest.patience=0"],
    "stops early": [
        f"{EVERY}=5",
        "trainer.max_epochs=9",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1e9",
    ],
}
# These are times, or those of the updates since the run was resumed.
OF_PROCESS = ("train/epoch_s", "train/audio_s_per_s", "train/loader_wait", "train/checkpoint_wait_s", "train/peak_gb")
OF_PROCESS += ("train/fill", "train/padding", "train/rank_balance")


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    kept = [o for o in toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus) if o != "logger=none"]
    # A loss that differs at each validation, and is best at the first of them.
    return [
        *kept,
        "logger=csv",
        "trainer.monitor=val/loss",
        "data.max_batch_s=100",
        "data.max_batch_size=2",
        "head.dropout=0.3",
        "optimizers.rest.lr=0.3",
        "scheduler@schedulers.rest=constant",
    ]


def start(folder, overrides, resumed=False):
    return start_run(resolved(*overrides, *(["resume=auto"] if resumed else [])), folder, None)


def fit(folder, overrides, resumed=False):
    run, path = start(folder, overrides, resumed)
    run.trainer.fit(run.module, datamodule=run.data, ckpt_path=path)
    return run


def results(folder):
    """What a run leaves behind: scores and weights of checkpoints, metrics by row, and texts of the last validation."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        checkpoint = read_checkpoint(path)
        states = [each for each in checkpoint["callbacks"].values() if each.get("monitor")]
        scores = [(each["best_model_score"], sorted(each["best_k_models"].values())) for each in states]
        found[path.name] = (checkpoint["global_step"], checkpoint["epoch"], scores)
        found[f"{path.name} weights"] = checkpoint["state_dict"]
    with (folder / "metrics" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Sizes of data and model are logged again by each process.
    logged = [row for row in rows if not row["model/parameters"]]
    cells = [(row["step"], name, row[name]) for row in logged for name in sorted(row) if row[name]]
    found["metrics"] = [(step, name, "" if name in OF_PROCESS else value) for step, name, value in cells]
    dev = folder / "predictions" / "dev.jsonl"
    found["dev"] = [json.loads(line) for line in dev.open()] if dev.exists() else None
    return found


def check_equal(found, expected, moment):
    assert found.keys() == expected.keys(), moment
    for name, value in expected.items():
        if name.endswith("weights"):
            assert all(torch.equal(found[name][key], weight) for key, weight in value.items()), (moment, name)
        else:
            assert found[name] == value, (moment, name)


@pytest.mark.parametrize("kind", RUNS)
def test_run_that_is_killed_after_any_checkpoint_equals_the_whole_run(overrides, tmp_path, monkeypatch, kind):
    """Each copy of the folder is that of a run which is killed after it has written a checkpoint."""
    whole, copies, plain = tmp_path / "whole", [], checkpoint_io.write_checkpoint

    def written(checkpoint, path):
        plain(checkpoint, path)
        copies.append(tmp_path / f"{len(copies)} {path.stem} {checkpoint['global_step']}")
        shutil.copytree(whole, copies[-1])

    overrides = [*overrides, *RUNS[kind]]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "write_checkpoint", written)
        updates = fit(whole, overrides).trainer.global_step
    expected = results(whole)
    assert expected["last.ckpt"][0] == updates, "the end of the run is saved"
    copies = [copy for copy in copies if (copy / "checkpoints" / "last.ckpt").exists()]
    assert copies
    for copy in copies:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "could not find the monitored key")
            again = fit(copy, overrides, resumed=True)
        assert again.trainer.global_step == updates, copy.name
        check_equal(results(copy), expected, copy.name)


@pytest.mark.parametrize(
    ("more", "hook", "number"),
    [(["data.dev=null"], "on_train_batch_end", 4), ([], "on_train_epoch_start", 1)],
    ids=["at its last update", "after its validation"],
)
def test_run_that_a_signal_stops_at_the_end_of_an_epoch_equals_the_whole_run(overrides, tmp_path, more, hook, number):
    overrides = [*overrides, *more]
    fit(tmp_path / "whole", overrides)
    stopped, _ = start(tmp_path / "stopped", overrides)
    stops(stopped, hook, number)
    with pytest.raises(SystemExit) as caught:
        stopped.trainer.fit(stopped.module, datamodule=stopped.data)
    assert (caught.value.code, stopped.trainer.global_step) == (143, 5), "no update is made after the signal"
    fit(tmp_path / "stopped", overrides, resumed=True)
    check_equal(results(tmp_path / "stopped"), results(tmp_path / "whole"), hook)


def test_a_run_that_stopped_early_trains_on_only_with_more_patience(overrides, tmp_path):
    overrides = [*overrides, *RUNS["stops early"]]
    assert fit(tmp_path, overrides).trainer.global_step == 10
    said = "has stopped early, after 1 validations without a better val/wer. It is only tested again"
    with pytest.warns(Notice, match=said):
        assert fit(tmp_path, overrides, resumed=True).trainer.global_step == 10
    more = [*overrides, "callbacks.early_stopping.patience=2"]
    assert fit(tmp_path, more, resumed=True).trainer.global_step == 15


def test_early_stopping_without_validation_does_nothing(overrides, tmp_path):
    more = ["callbacks=early_stopping", "trainer.limit_val_batches=0"]
    assert fit(tmp_path, [*overrides, *more]).trainer.global_step == 10


def test_seconds_of_an_epoch_begin_where_the_run_is_resumed(overrides, tmp_path):
    fit(tmp_path, [*overrides, "trainer.max_steps=3"])
    began = time.monotonic()
    fit(tmp_path, [*overrides, "trainer.max_steps=5"], resumed=True)
    with (tmp_path / "metrics" / "metrics.csv").open() as file:
        epochs_s = [float(row["train/epoch_s"]) for row in csv.DictReader(file) if row["train/epoch_s"]]
    assert 0 < epochs_s[-1] < time.monotonic() - began
