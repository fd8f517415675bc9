"""Several runs on one page: their order, paired tests, and the effect of the choices of a sweep."""

import json
import shutil
from pathlib import Path

import pytest

from ssl_asr.data.text import get_normalizer
from ssl_asr.metrics.ranking import rank
from ssl_asr.metrics.report import read_predictions
from ssl_asr.metrics.significance import shown_p
from tests.report.runs import make_run
from tests.report.test_job import written


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Intervals are those of the tests of `ssl_asr.metrics`."""
    monkeypatch.setattr("ssl_asr.metrics.significance.BOOTSTRAP_SAMPLES", 50)
    monkeypatch.setattr("ssl_asr.metrics.report.BOOTSTRAP_SAMPLES", 50)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    return [make_run(folder / name, wrong) for name, wrong in (("bad", 1), ("good", 8), ("fair", 4))]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two choices of two values, of which one job was interrupted and one failed before it wrote anything."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = [("1e-3", "true", 2), ("1e-3", "false", 4), ("1e-4", "true", 5), ("1e-4", "false", 8), ("1e-2", "true", 1)]
    for number, (rate, freeze, wrong) in enumerate(jobs):
        overrides = ["backbone=toy", f"optimizers.rest.lr={rate}", f"freeze={freeze.title()}"]
        status = "interrupted" if rate == "1e-2" else "done"
        make_run(folder / str(number), wrong, overrides=overrides, number=number, status=status)
    note = {"number": 5, "overrides": ["backbone=toy", "optimizers.rest.lr=1e-2", "freeze=False"], "status": "failed"}
    (folder / "5").mkdir()
    (folder / "5" / "job.json").write_text(json.dumps(note | {"error": "train.jsonl: no <such> file"}))
    return folder


def test_runs_are_ranked_by_the_dev_set(runs, tmp_path):
    page, _ = written(tmp_path, *runs, audio="none", details=0)
    rows = page.table("Ranking")
    assert [row["run"] for row in rows] == ["good", "fair", "bad"]
    wers = [float(row["dev WER %"]) for row in rows]
    assert wers == sorted(set(wers))
    assert rows[0]["status"] == "done"


def test_differences_are_those_of_compare(runs, tmp_path):
    page, _ = written(tmp_path, *runs, audio="none", details=0)
    systems = [read_predictions(run / "predictions" / "test.jsonl") for run in runs]
    found = rank(systems, "lower", get_normalizer("lower"))
    rows = page.table("Differences on test")
    assert [row["run"] for row in rows] == [runs[each].name for each in found.order]
    best, worst = found.order[0], found.order[-1]
    difference = 100 * (found.scores[worst].wer - found.scores[best].wer)
    assert rows[0]["3"] == f"{difference:+.2f}p {shown_p(found.p(best, worst))}"
    assert "corrected for 3 tests by Holm" in page.text
    [setting] = page.table("Settings that differ")
    assert setting == {"setting": "freeze_policy.layers", "good": "8", "fair": "4", "bad": "1"}
    length = next(table for _, table in page.tables if table[0][:1] == ["length"])
    assert length[0][1:] == ["utterances", "good", "fair", "bad"]


def test_runs_on_other_utterances_are_not_tested(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "other")
    path = other / "predictions" / "test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    page, _ = written(tmp_path, runs[1], other, audio="none", details=0)
    assert "different utterances or references, so differences are not tested" in page.text
    assert "so their order says little" not in page.text
    path = other / "predictions" / "dev.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    page, _ = written(tmp_path, runs[1], other, audio="none", details=0, overwrite=True)
    assert "so their order says little" in page.text
    assert "Groups of dev" not in page.text


def test_details_are_those_of_the_best_runs(runs, tmp_path):
    page, text = written(tmp_path, *runs, audio="none", details=1, splits=["test"])
    assert text.count('<details class="run">') == 1
    assert '<details class="run"><summary>good</summary>' in text
    assert "The best 1 runs are shown in full" in page.text


def test_a_sweep_is_ranked_with_the_effect_of_each_choice(sweep, tmp_path, capsys):
    page, text = written(tmp_path, sweep, audio="none", details=0)
    rows = page.table("Ranking")
    assert [row["run"] for row in rows] == ["job 3", "job 2", "job 1", "job 0", "job 4", "job 5"]
    assert [row["status"] for row in rows] == ["done"] * 4 + ["interrupted", "failed"]
    assert (rows[0]["optimizers.rest.lr"], rows[0]["freeze"]) == ("1e-4", "false")
    wer = {row["run"]: float(row["dev WER %"]) for row in rows[:4]}
    [rates, freezes] = [table for _, table in page.tables if table[0][1:2] == ["jobs"]]
    assert rates[0] == ["optimizers.rest.lr", "jobs", "mean", "best", "against 1e-4", "pairs"]
    assert [row[:2] for row in rates[1:]] == [["1e-4", "2"], ["1e-3", "2"], ["1e-2", "0"]]
    paired = (wer["job 0"] - wer["job 2"] + wer["job 1"] - wer["job 3"]) / 2
    assert float(rates[2][4]) == pytest.approx(paired, abs=0.011)
    assert rates[2][5] == "2"
    assert float(freezes[1][2]) == pytest.approx((wer["job 1"] + wer["job 3"]) / 2, abs=0.011)
    assert "failed: train.jsonl: no <such> file" in page.text
    assert text.count("<polyline") > 4
    assert f"not complete, see the page: {sweep.name}/4, {sweep.name}/5" in capsys.readouterr().out


def test_wildcards_and_jobs_name_runs_once(sweep, tmp_path):
    page, _ = written(tmp_path, sweep / "[0-1]", sweep / "0", audio="none", details=0)
    assert [row["run"] for row in page.table("Ranking")] == ["job 1", "job 0"]


def test_a_folder_of_runs_is_taken_for_its_runs(runs, tmp_path):
    page, _ = written(tmp_path, Path(runs[0]).parent, audio="none", details=0)
    assert len(page.table("Ranking")) == 3
