"""The GPU check runs on a CPU with tiny shapes, so that it still works when a GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_a_run_on_a_cpu_measures_and_reports_every_part(tmp_path):
    """One test: parallel processes would each repeat the run."""
    done, results = _run(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + json.dumps(results)[-3000:]
    parts = results["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(
        ("table", "train", "suite"), "passed"
    )
    assert [row["name"] for row in parts["table"]["rows"]] == TINY_ROWS
    assert all(row["ms"] > 0 for row in parts["table"]["rows"])
    [row] = parts["train"]["rows"]
    assert set(row["wer"]) == {"lower", "whisper_english"}
    assert row["first_batch_s"] > 0
    # The first batch of the first epoch is timed by itself.
    assert [epoch["batches"] for epoch in row["epochs"]] == [1, 2]
    assert parts["suite"]["collected"] == sum(parts["suite"]["outcomes"].values()) > 5
    assert parts["suite"]["not_passed"] == []


def test_a_part_over_its_limit_is_stopped_and_fails_the_run(tmp_path):
    done, results = _run(tmp_path, "--only", "train", "--limit", "train=0.1")
    assert done.returncode == 1
    assert results["parts"]["train"]["status"] == "stopped after 0.1 s"
