"""Times recognizers side by side, each in its own process.

They take turns, one batch each, so that load on the machine affects all of them equally.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_asr.data.text import get_normalizer
from ssl_asr.metrics.edit import Edits, word_edits

REPO = Path(__file__).parent.parent.parent


@dataclass
class Runner:
    """One recognizer, its texts so far, and the time they took."""

    name: str
    kind: str
    options: dict
    python: str = sys.executable
    threads: int = 2
    seconds: float = 0.0
    peak_gb: float = 0.0
    texts: list[str] = field(default_factory=list)

    def start(self):
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
        command = [self.python, str(REPO / "tests" / "benchmarks" / "recognizers.py"), self.kind]
        self.process = subprocess.Popen(
            [*command, json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "BENCH_VERBOSE" not in os.environ else None,
            text=True,
            env=env,
        )
        if self._answer() != "ready":
            raise AssertionError(f"{self.name} did not start")

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read()[-3000:] if self.process.stderr else ""
            raise AssertionError(f"{self.name} stopped: {said}")
        return json.loads(line)

    def ask(self, paths):
        print(json.dumps([str(path) for path in paths]), file=self.process.stdin, flush=True)
        return self._answer()

    def take(self, paths):
        answer = self.ask(paths)
        self.texts += answer["texts"]
        self.seconds += answer["seconds"]
        self.peak_gb = max(self.peak_gb, answer["peak_gb"])

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(runners, batches):
    """Let every runner transcribe every batch, a list of files, after a warm-up on the first two files."""
    for runner in runners:
        runner.start()
        runner.ask(batches[0][:2])
    for number, batch in enumerate(batches):
        # The order changes, so that no runner always follows the same one.
        for runner in [*runners[number % len(runners) :], *runners[: number % len(runners)]]:
            runner.take(batch)
        if number % 3 == 0:
            print(f"{number + 1} of {len(batches)}: {sum(r.seconds for r in runners):.0f} s", flush=True)
    for runner in runners:
        runner.stop()


def show(title, runners, references, speech_s, peers, normalizer):
    """Print a table of error rates and speeds, and how many texts equal those of the first runner."""
    normalize = get_normalizer(normalizer)
    table = Table(title=title, title_justify="left")
    for column in ("", "WER %", "s", "RTFx", "GB", *(f"x {peer}" for peer in peers), f"texts as {peers[0]}"):
        table.add_column(column, justify="left" if not column else "right")
    by_name = {runner.name: runner for runner in runners}
    for runner in runners:
        total = Edits()
        for reference, text in zip(references, runner.texts, strict=True):
            total += word_edits(normalize(reference, "en"), normalize(text, "en"))
        ratios = [f"{by_name[peer].seconds / runner.seconds:.2f}" for peer in peers]
        same = sum(a.strip() == b.strip() for a, b in zip(runner.texts, by_name[peers[0]].texts, strict=True))
        cells = [f"{100 * total.rate:.2f}", f"{runner.seconds:.1f}", f"{speech_s / runner.seconds:.1f}"]
        table.add_row(runner.name, *cells, f"{runner.peak_gb:.2f}", *ratios, f"{same} of {len(runner.texts)}")
    Console(width=160).print(table)
