"""The mutation test; see README.md.

python -m tests.mutation.run cover                      which tests run which lines, and how long they take
python -m tests.mutation.run sample --seed 1 --count 500
python -m tests.mutation.run report seed1               one line for each survivor, and shares

A mutant is tested in a process that is forked from one which has imported the libraries but nothing of `ssl_asr` and
its tests. An import hook serves the mutated source, so no file changes and several mutants can run at once.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.mutation.mutants import REPO, Mutant, sample
from tests.mutation.selection import Selection

SETTINGS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "settings.toml").read_text())
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line", "-o", "addopts=--strict-markers"]
NOTICED = ("noticed", "hang")


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from a mutated source."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, _: str) -> CodeType:
        """The mutated module, compiled."""
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder:
    """Finds one module, the mutated one."""

    def __init__(self, path: str, source: str) -> None:
        self.name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._loader = _Loader(self.name, str(REPO / path), source)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """The specification of the mutated module, and None for all others."""
        return importlib.util.spec_from_loader(name, self._loader) if name == self.name else None


class _Failures:
    """A plugin of pytest that notes the first failure."""

    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed and not self.first:
            self.first = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest after it has collected a file."""
        self.pytest_runtest_logreport(report)


def in_a_fork(work: Callable[[Path], str], limit: float) -> str:
    """Runs ``work`` in a forked process of its own group and returns what it returns.

    Args:
        work: Gets an empty folder.
        limit: float, seconds after which the process and its children are killed, and the result is ``"hang"``.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
                os.dup2(output, 1)
                os.dup2(output, 2)
                (folder / "result").write_text(work(folder))
            finally:
                os._exit(0)
        end, done = time.monotonic() + limit, 0
        while not done and time.monotonic() < end:
            done, _ = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not done:
            os.waitpid(child, 0)
            return "hang"
        return (folder / "result").read_text() if (folder / "result").is_file() else "died"


def _libraries(folder: Path) -> str:
    """Imports the package and its tests. Returns the names of all other modules that are imported then."""
    for path in [*REPO.glob("ssl_asr/**/*.py"), *REPO.glob("tests/*/test_*.py")]:
        if path.name != "__main__.py":
            with contextlib.suppress(ImportError, SystemExit):
                name = ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
                importlib.import_module(name)
    return "\n".join(name for name in sys.modules if name.split(".")[0] not in ("ssl_asr", "tests", "__main__"))


def import_libraries() -> None:
    """Imports what the package and its tests need, and nothing of them."""
    import hypothesis

    for name in in_a_fork(_libraries, limit=300).splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutation")


def run_tests(tests: Sequence[str], mutant: Mutant | None, limit: float) -> tuple[str, str]:
    """Runs tests with a mutant until one fails.

    Returns:
        ``"survived"``, ``"noticed"`` or ``"hang"``, and the test that failed.
    """
    source = None if mutant is None else mutant.source()

    def work(folder: Path) -> str:
        import pytest

        if mutant is not None and source is not None:
            sys.meta_path.insert(0, _Finder(mutant.path, source))  # type: ignore[arg-type]
        failures = _Failures()
        code = pytest.main([*OPTIONS, f"--basetemp={folder / 'tmp'}", *tests], plugins=[failures])
        return json.dumps(["noticed" if code else "survived", failures.first or str(code)])

    result = in_a_fork(work, limit)
    if result in ("hang", "died"):
        return ("hang", "") if result == "hang" else ("noticed", "the process died")
    outcome, test = json.loads(result)
    return outcome, test


def cover(folder: Path) -> None:
    """Runs the tests once, and writes which lines each runs and how long it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.ini").write_text("[run]\nrelative_files = true\n")
    for name in SETTINGS["tests"]["folders"]:
        options = ["--cov=ssl_asr", f"--cov-config={folder}/coverage.ini", "--cov-context=test", "--cov-report="]
        selected = ["-p", "no:cacheprovider", "-m", "not slow and not benchmark", f"tests/{name}"]
        options.append(f"--junitxml={folder}/junit.{name}.xml")
        environment = {**os.environ, "COVERAGE_FILE": f"{folder}/coverage.{name}.db"}
        subprocess.run([sys.executable, "-m", "pytest", "-q", *options, *selected], env=environment, cwd=REPO)


def planned(folder: Path, *, count: int, seed: int) -> list[Mutant]:
    """The sample of a seed. The first process draws and writes it, which takes a minute, and others read it."""
    path = folder / f"sample.{count}.{seed}.json"
    if not path.exists():
        rows = [dataclasses.asdict(mutant) for mutant in sample(SETTINGS, count=count, seed=seed)]
        path.with_suffix(f".{os.getpid()}").write_text(json.dumps(rows))
        path.with_suffix(f".{os.getpid()}").replace(path)
    return [Mutant(**row) for row in json.loads(path.read_text())]


def test_sample(mutants: Sequence[Mutant], folder: Path, out: Path, seconds: float) -> None:
    """Tests each mutant that ``out`` does not have yet, and appends a row of JSON for each."""
    selection = Selection(folder)
    done = {json.dumps(row["mutant"], sort_keys=True) for row in read_rows([out])} if out.exists() else set()
    for mutant in mutants:
        if json.dumps(dataclasses.asdict(mutant), sort_keys=True) in done:
            continue
        tests, start = selection.tests(mutant, seconds), time.monotonic()
        expected = sum(selection.seconds[test] for test in tests)
        outcome, test = run_tests(tests, mutant, 25 + 3 * expected) if tests else ("not covered", "")
        row = {
            "mutant": dataclasses.asdict(mutant),
            "changed": mutant.changed(),
            "outcome": outcome,
            "test": test,
            "tests": len(tests),
            "seconds": round(time.monotonic() - start, 1),
        }
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows that `test_sample` wrote."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each survivor, then a table of the share that was noticed in each folder."""
    lines, noticed, total = [], Counter[str](), Counter[str]()
    for row in sorted(rows, key=lambda row: (row["mutant"]["path"], row["mutant"]["line"])):
        part = row["mutant"]["path"].split("/")[1]
        for key in (part, "all"):
            total[key] += 1
            noticed[key] += row["outcome"] in NOTICED
        if row["outcome"] not in NOTICED:
            before, after = row["changed"]
            lines.append(
                f"{row['mutant']['path']}:{row['mutant']['line']} ({row['outcome']})\n  - {before}\n  + {after}"
            )
    lines += ["", "| folder | mutants | noticed | share |", "| --- | --- | --- | --- |"]
    lines += [f"| {key} | {total[key]} | {noticed[key]} | {noticed[key] / total[key]:.1%} |" for key in sorted(total)]
    return "\n".join(lines)


def main() -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["cover", "sample", "report"])
    parser.add_argument("results", nargs="*", type=Path, help="files of results, for report")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ssl_asr_mutation"), help="coverage and results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500, help="mutants, over all folders")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time of the tests of a mutant")
    parser.add_argument("--shard", default="0/1", help="which of how many processes this is, such as 0/2")
    given = parser.parse_args()
    if given.command == "cover":
        cover(given.folder)
    elif given.command == "report":
        print(report(read_rows(given.results)))
    else:
        shard, shards = map(int, given.shard.split("/"))
        mutants = planned(given.folder, count=given.count, seed=given.seed)
        import_libraries()
        test_sample(
            mutants[shard::shards], given.folder, given.folder / f"seed{given.seed}.{shard}.jsonl", given.seconds
        )


if __name__ == "__main__":
    main()
