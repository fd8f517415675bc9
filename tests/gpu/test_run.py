"""The GPU check runs on a CPU with tiny shapes, so that it still works when a GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.bench import TINY_ROWS

SCRIPT = Path(__file__).parent / "run.sh"


def _run(folder, *options):
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("WHEELS", None)
    done = subprocess.run(
        [str(SCRIPT), "--tiny", "--out", str(folder), *options], env=env, capture_output=True, text=True, timeout=300
    )
    [path] = folder.glob("*.json")
    return done, json.loads(path.read_text())


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("results"))


def test_every_part_passes_on_a_cpu(tiny_run):
    done, results = tiny_run
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + json.dumps(results)[-3000:]
    assert {name: part["status"] for name, part in results["parts"].items()} == dict.fromkeys(
        ("table", "train", "suite"), "passed"
    )


def test_every_row_of_the_table_is_measured(tiny_run):
    rows = tiny_run[1]["parts"]["table"]["rows"]
    assert [row["name"] for row in rows] == TINY_ROWS
    assert all(row["ms"] > 0 for row in rows)


def test_fine_tuning_reports_wer_and_time(tiny_run):
    [row] = tiny_run[1]["parts"]["train"]["rows"]
    assert set(row["wer"]) == {"lower", "whisper_english"}
    assert row["first_batch_s"] > 0
    # The first batch of the first epoch is timed by itself.
    assert [epoch["batches"] for epoch in row["epochs"]] == [1, 2]


def test_the_suite_reports_its_outcomes(tiny_run):
    suite = tiny_run[1]["parts"]["suite"]
    assert suite["collected"] == sum(suite["outcomes"].values()) > 5
    assert suite["not_passed"] == []


def test_a_part_over_its_limit_is_stopped_and_fails_the_run(tmp_path):
    done, results = _run(tmp_path, "--only", "train", "--limit", "train=0.1")
    assert done.returncode == 1
    assert results["parts"]["train"]["status"] == "stopped after 0.1 s"
