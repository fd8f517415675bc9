"""A run's folder: never overwritten, continued by ``resume``, and results that say where they come from."""

import csv
import json
import math
import shlex
import shutil

import pytest

from ssl_asr.config.run_folder import other_run
from ssl_asr.metrics.provenance import git_commit, typed_command
from ssl_asr.metrics.report import read_predictions
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.training.toy_runs import toy_overrides


@pytest.fixture(scope="module")
def command(toy_checkpoints, toy_corpus):
    overrides = [o for o in toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus) if o != "logger=none"]
    return ["train", *overrides, "freeze=true", "data.max_batch_s=100", "data.max_batch_size=2"]


@pytest.fixture(scope="module")
def finished(run_command, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = run_command(*command, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def epochs_of(folder):
    with (folder / "metrics" / "metrics.csv").open(newline="") as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def test_folder_of_a_run_is_refused_and_unchanged(copy, run_command, command):
    before = contents(copy)
    done = run_command(*command, f"run_dir={copy}")
    assert done.returncode == 2
    assert f"error: run_dir: {copy} already holds a run. Write resume=auto to continue it" in done.stderr
    assert contents(copy) == before


def test_folder_of_a_run_is_refused_for_the_checkpoint_of_another_run(copy, run_command, command, tmp_path):
    other = shutil.copytree(copy, tmp_path / "other")
    done = run_command(*command, f"run_dir={copy}", f"resume={other}/checkpoints/last.ckpt")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


@pytest.mark.parametrize("resume", ["auto", pytest.param("path", marks=pytest.mark.slow)])
def test_resumed_run_continues_metrics_and_results(finished, copy, run_command, command, resume):
    before = epochs_of(copy)
    value = "auto" if resume == "auto" else f"{copy}/checkpoints/last.ckpt"
    done = run_command(*command, f"run_dir={copy}", f"resume={value}", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr[-3000:]
    after = epochs_of(copy)
    assert after[: len(before)] == before
    assert {*before} == {"0", "1"}
    assert {*after} == {"0", "1", "2", "3"}
    assert len(after) == 2 * len(before)
    assert read_checkpoint(copy / "checkpoints" / "last.ckpt")["global_step"] == 20


def test_resuming_with_another_learning_rate_is_refused_and_changes_no_result(copy, run_command, command):
    before = contents(copy)
    done = run_command(*command, f"run_dir={copy}", "resume=auto", "optimizers.rest.lr=0.5")
    assert done.returncode == 2
    assert "error: optimizers.rest.lr: is 0.5, but this run was started with " in done.stderr
    # Hydra writes its own record of the command line before it starts a job.
    changed = {path for path, content in contents(copy).items() if before.get(path) != content}
    assert not {path for path in changed if ".hydra" not in path.parts}


def test_auto_starts_a_new_run_where_there_is_none(run_command, command, tmp_path):
    done = run_command(*command, f"run_dir={tmp_path}/new", "resume=auto", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "new" / "results.json").is_file()


def test_evaluation_into_a_run_folder_is_refused(copy, run_command):
    before = contents(copy)
    done = run_command("evaluate", f"predictions={copy}/predictions/test.jsonl", f"output_dir={copy}")
    assert done.returncode == 2
    assert "is the folder of a training run, whose results would be overwritten" in done.stderr
    assert contents(copy) == before


def test_results_hold_dev_and_test_and_where_they_come_from(finished):
    results = json.loads((finished / "results.json").read_text(), parse_constant=pytest.fail)
    assert list(results) == ["run", "dev", "test"]
    best = read_checkpoint(finished / "checkpoints" / "best.ckpt")
    score = next(c["best_model_score"] for c in best["callbacks"].values() if c.get("monitor") == "val/wer")
    assert results["dev"]["scores"]["lower"]["wer"] == pytest.approx(float(score))
    assert (
        len(read_predictions(finished / "predictions" / "dev.jsonl")) == results["dev"]["scores"]["lower"]["utterances"]
    )
    run = results["run"]
    assert shlex.split(run["command"])[1:5] == ["-m", "ssl_asr", "train", "backbone=wav2vec2_base"]
    assert run["versions"]["torch"].startswith("2.")
    assert run["started"] <= run["finished"]
    assert run["seconds"] > 0
    assert run["git"] == git_commit(finished.parent) or len(run["git"]["commit"]) == 40


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["/v/bin/python", "/v/bin/ssl-asr", "evaluate", "model=a b"], "ssl-asr evaluate 'model=a b'"),
        (["python", "-m", "ssl_asr.train", "run_dir=r"], "python -m ssl_asr.train run_dir=r"),
        (["python", "-m", "ssl_asr", "train", "run_dir=r/ssl-asr"], "python -m ssl_asr train run_dir=r/ssl-asr"),
        (["/v/python", "/v/bin/ssl-asr", "train", "-m", "seed=1,2"], "ssl-asr train -m seed=1,2"),
    ],
)
def test_command_can_be_typed_again(words, typed):
    assert typed_command(words) == typed


def test_folder_outside_git_has_no_commit(tmp_path):
    assert git_commit(tmp_path) is None


@pytest.mark.parametrize("name", ["train", "dev", "run"])
def test_test_sets_have_names_of_their_own(run_command, command, toy_corpus, tmp_path, name):
    done = run_command(*command, f"data.test={{{name}: {toy_corpus['test']}}}", f"run_dir={tmp_path}/r")
    assert done.returncode == 2
    assert f"data.test: names a manifest '{name}', which has another meaning" in done.stderr


def test_only_the_first_process_looks_for_another_run(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    assert [error.where for error in other_run(None, tmp_path)] == ["run_dir"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not list(other_run(None, tmp_path))


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    from ssl_asr.metrics.report import Prediction, write_predictions

    row = Prediction("a", "x", "y", -math.inf, 1.0, "a.wav", tags={"snr": math.nan, "list": [1.0, math.inf]})
    write_predictions(tmp_path / "p.jsonl", [row])
    written = json.loads((tmp_path / "p.jsonl").read_text(), parse_constant=pytest.fail)
    assert (written["score"], written["tags"]) == (None, {"snr": None, "list": [1.0, None]})
    assert math.isnan(read_predictions(tmp_path / "p.jsonl")[0].score)
