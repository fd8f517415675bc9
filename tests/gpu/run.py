"""Runs the parts of the GPU check one after the other, each with a time limit, and keeps what each has found.

    python -m tests.gpu.run [--tiny] [--only PART] [--limit PART=SECONDS] [--out FOLDER]
                            [--checkpoint FOLDER] [--data FOLDER]

Parts: ``table`` (`tests.gpu.bench`), ``train`` (`tests.gpu.finetune`) and ``suite`` (pytest with CUDA visible).
The results are in one JSON file, ``<date>-<card>.json``. It is rewritten every second while a part runs, so a killed
run loses at most one row. Exit status: 0, or 1 if a part failed or reached its limit.
"""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.rows import ROWS_FILE, read_rows

REPO = Path(__file__).parents[2]
RESULTS = REPO / "tests" / "benchmarks" / "results"
LIMITS_S = {"table": 250.0, "train": 100.0, "suite": 180.0}
"""On an H200 with 16 CPU cores, the table took 181 s, one of the two training runs 80 s, the suite 212 s.

The table has 11 more rows of decoding since then.
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command and its time limit."""

    name: str
    command: list[str]
    limit_s: float


def environment() -> dict[str, Any]:
    """The card, the versions of the libraries and the commit."""
    import lightning
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    return {
        "card": torch.cuda.get_device_name() if cuda else "cpu",
        "commit": commit.stdout.strip() or os.environ.get("COMMIT", "unknown"),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lightning": lightning.__version__,
        "cpus": os.cpu_count(),
    }


def make_parts(arguments: argparse.Namespace) -> list[Part]:
    """The parts that were asked for, in order."""
    tiny = ["--tiny"] if arguments.tiny else []
    files = ["tests/metrics/test_edit.py", "tests/data/test_sampler.py"] if arguments.tiny else ["tests"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu.report", "-p", "no:cacheprovider"]
    pytest += ["-m", "not slow and not benchmark", "--ignore=tests/gpu", *files]
    if not arguments.tiny:
        workers = max(2, (os.cpu_count() or 4) - 2)
        pytest += ["-n", str(workers), "--dist", "worksteal"]
    train = [sys.executable, "-m", "tests.gpu.finetune", *tiny]
    train += ["--checkpoint", arguments.checkpoint] + (["--data", arguments.data] if arguments.data else [])
    commands = {"table": [sys.executable, "-m", "tests.gpu.bench", *tiny], "train": train, "suite": pytest}
    limits = {**LIMITS_S, **dict(arguments.limit)}
    names = arguments.only or list(commands)
    return [Part(name=name, command=commands[name], limit_s=limits[name]) for name in names]


def summarize(part: Part, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as they are; of the suite, the counts, what did not pass, and the slowest tests."""
    if part.name != "suite":
        return {"rows": rows}
    tests = [row for row in rows if "test" in row]
    return {
        "collected": max((row["collected"] for row in rows if "collected" in row), default=0),
        "outcomes": dict(Counter(row["outcome"] for row in tests)),
        "not_passed": [row for row in tests if row["outcome"] != "passed"],
        "slowest": sorted(tests, key=lambda row: -row["s"])[:10],
    }


def run_part(part: Part, results: dict[str, Any], path: Path) -> bool:
    """Run a part, and keep its rows in the results file while it runs. Returns whether it succeeded."""
    rows_file = Path(tempfile.mkdtemp()) / "rows.jsonl"
    env = {**os.environ, ROWS_FILE: str(rows_file), "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    if part.name == "suite":
        # Workers with all threads each would compete for the CPU.
        env |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    process = subprocess.Popen(part.command, cwd=REPO, env=env, start_new_session=True)
    status = None
    while status is None:
        time.sleep(0.2 if time.monotonic() - began < 5 else 1.0)
        code, taken_s = process.poll(), time.monotonic() - began
        if code is not None:
            status = "passed" if code == 0 else f"failed with exit status {code}"
        elif taken_s > part.limit_s:
            _stop(process)
            status = f"stopped after {part.limit_s:g} s"
        found = summarize(part, read_rows(rows_file))
        results["parts"][part.name] = {"status": status or "running", "s": round(taken_s, 1), **found}
        _write(results, path)
    print(f"{part.name}: {status} ({taken_s:.0f} s)", flush=True)
    return status == "passed"


def _stop(process: subprocess.Popen) -> None:
    """End a part and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def _write(results: dict[str, Any], path: Path) -> None:
    """Replace the results file, so that it is complete at all times."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    beside.replace(path)


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    if name not in LIMITS_S:
        raise argparse.ArgumentTypeError(f"got {name}, expected one of {', '.join(LIMITS_S)}")
    return name, float(seconds)


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description="Everything that is measured and tested on a GPU.")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, as on a CPU in CI")
    parser.add_argument("--only", action="append", choices=list(LIMITS_S), help="run this part only; may be repeated")
    parser.add_argument("--limit", action="append", type=_limit, default=[], metavar="PART=SECONDS")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--checkpoint", default="openai/whisper-tiny.en", help="folder or name of Whisper tiny.en")
    parser.add_argument("--data", default=os.environ.get("SSL_ASR_DATA"), help="folder that holds en_an4")
    arguments = parser.parse_args()
    results = {**environment(), "tiny": arguments.tiny, "parts": {}}
    card = re.sub(r"[^a-z0-9]+", "-", results["card"].lower()).strip("-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{results['date'][:10]}-{card}{'-tiny' if arguments.tiny else ''}.json"
    succeeded = [run_part(part, results, path) for part in make_parts(arguments)]
    print(f"results: {path}")
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    raise SystemExit(main())
