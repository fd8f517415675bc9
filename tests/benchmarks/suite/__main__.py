"""The CPU benchmarks: one run, one JSON file, and the table in tests/benchmarks/README.md.

    make bench                                              (all, sized for an hour on two cores)
    python -m tests.benchmarks.suite --only B14,B15         (some; the table is not written)
    python -m tests.benchmarks.suite --quick --only B3      (small shapes and one turn: checks that it runs)

Both sides of a comparison take turns in one run, and each has an equality check. BENCH_PEERS is the interpreter of the
environment that has pyctcdecode.

B20, the WER of fine-tuning with real lengths and with 30-s windows, is not here: its two runs take half an hour. Its
commands are in tests/benchmarks/README.md, section "Fine-tuning" (``experiment=an4_whisper freeze=false seed=6`` with
and without ``backbone.window=30s``).
"""

import argparse
import datetime
import json
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from tests.benchmarks.suite import checkpoints, encoders, loops, parts, recognition, training
from tests.benchmarks.suite.rows import Options, Row, run_alone

FOLDER = Path(__file__).parent.parent
BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
PARTS = {
    "B1": training.b1,
    "B2": training.b2,
    "B3": training.b3,
    "B4": training.b4,
    "B5": training.b5,
    "B6": training.b6,
    "B7": training.b7,
    "B8": training.b8,
    "B9": parts.b9,
    "B10": parts.b10,
    "B11": parts.b11,
    "B12": loops.b12,
    "B13": parts.b13,
    "B14": parts.b14,
    "B15": parts.b15,
    "B16": recognition.b16,
    "B17": recognition.b17,
    "B18": recognition.b18,
    "B19": parts.b19,
    "B21": loops.b21,
    "B22": training.b22,
    "B23": loops.b23,
    "B24": loops.b24,
    "B25": checkpoints.b25,
    "P1": encoders.p1,
    "P2": recognition.p2,
}


def machine() -> str:
    """Name of the machine in file names: its processor and the number of threads."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return "-".join([*name.lower().replace("(r)", "").split(), str(torch.get_num_threads()), "threads"])


def commit() -> str:
    """Short hash of the checkout."""
    command = ["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def table(rows: list[Row]) -> list[str]:
    """The rows as a table of Markdown."""
    lines = ["| | what | against | ours | theirs | ratio (least to most) | check |", "| --- " * 7 + "|"]
    for row in rows:
        spread = "" if row.spread is None else f" ({row.spread[0]:.2f} to {row.spread[1]:.2f})"
        figures = f"{row.ours:,.4g} {row.unit} | {row.theirs:,.4g} {row.unit} | {row.ratio:.2f}{spread}"
        lines.append(f"| {row.id} | {row.what} | {row.peer} | {figures} | {row.check} |")
    return lines


def write_table(path: Path, lines: list[str]) -> None:
    """Replace the marked section of a file.

    Raises:
        AssertionError: The file has no marked section.
    """
    text = path.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"{path} has no section between {BEGIN} and {END}"
    before, rest = text.split(BEGIN)
    path.write_text("\n".join([before + BEGIN, *lines, END]) + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    """Run the parts, and write what they found."""
    parser = argparse.ArgumentParser(description="CPU benchmarks against other libraries.")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, for example B14,B15")
    parser.add_argument("--quick", action="store_true", help="small shapes and one turn; writes nothing")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}. The parts are {', '.join(PARTS)}")
    options = Options(pairs=1 if arguments.quick else 5, quick=arguments.quick)
    today, commit_id = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", commit()
    path = FOLDER / "results" / f"{today}-{machine()}-{commit_id}.json"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "commit": commit_id}
    rows: list[Row] = []
    for name in chosen:
        began = time.perf_counter()
        found = run_alone(PARTS[name], options)
        print("\n".join(table(found)[2:]), f"\n{name} took {time.perf_counter() - began:.0f} s", flush=True)
        rows += found
        if not arguments.quick:
            # After each part, so that a run that is stopped leaves what it has measured.
            content = {**versions, "date": today, "machine": machine(), "rows": [asdict(row) for row in rows]}
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if set(chosen) == set(PARTS) and not arguments.quick:
        heading = f"[{machine()}, {today}, {commit_id}](results/{path.name})"
        write_table(FOLDER / "README.md", ["", f"{heading}:", "", *table(rows), ""])


if __name__ == "__main__":
    main()
