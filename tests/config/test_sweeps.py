"""The table of a sweep's jobs, from the notes that they leave."""

import csv

import pytest
from omegaconf import OmegaConf

from ssl_asr.config.sweeps import SweepFolder, noted, report_sweep
from ssl_asr.errors import ConfigError

SHARED = ["task=ctc", "data.train=t.jsonl"]


def start(folder):
    SweepFolder().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}), config_name="train")


def run(folder, number, *, score=None, error=None, writes=True):
    job = folder / str(number)
    job.mkdir(parents=True, exist_ok=True)
    with noted(job, number, [*SHARED, f"seed={number}"], writes=writes) as note:
        if error is not None:
            raise error
        note.score, note.measure = score, "best val/wer"


def rows_of(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_has_what_each_job_changed_and_what_became_of_it(tmp_path, capsys):
    start(tmp_path)
    run(tmp_path, 0, score=0.25)
    for number, error in (
        (1, ConfigError("a.b", "is wrong", "fix it")),
        (2, KeyboardInterrupt()),
        (3, ValueError("x")),
    ):
        with pytest.raises(type(error)):
            run(tmp_path, number, error=error)
    run(tmp_path, 10, score=0.125)
    assert report_sweep() == 2
    rows = rows_of(tmp_path)
    assert [row["job"] for row in rows] == ["0", "1", "2", "3", "10"]
    assert [row["status"] for row in rows] == ["done", "failed", "interrupted", "failed", "done"]
    assert [row["best val/wer"] for row in rows] == ["0.25", "", "", "", "0.125"]
    assert [row["overrides"] for row in rows] == [f"seed={number}" for number in (0, 1, 2, 3, 10)]
    assert [row["error"] for row in rows] == ["", "a.b: is wrong. Fix it.", "", "ValueError: x", ""]
    assert rows[4]["folder"] == "10"
    shown = capsys.readouterr().out
    assert "failed: a.b: is wrong. Fix it." in shown
    assert "0.125" in shown
    assert report_sweep() == 0, "no sweep is reported twice"


def test_a_job_that_was_killed_is_shown_as_running_and_an_earlier_sweep_is_forgotten(tmp_path):
    start(tmp_path)
    run(tmp_path, 0, score=1.0)
    run(tmp_path, 1, score=1.0)
    start(tmp_path)
    (tmp_path / "0").mkdir(exist_ok=True)
    killed = noted(tmp_path / "0", 0, ["seed=0"], writes=True)
    killed.__enter__()
    run(tmp_path, 2, writes=False)
    assert report_sweep() == 0
    assert [(row["job"], row["status"], row["overrides"]) for row in rows_of(tmp_path)] == [("0", "running", "seed=0")]
