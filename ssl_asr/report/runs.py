"""Read the folders of runs, evaluations and sweeps. What is missing or damaged is noted, not refused.

runs/a              config.yaml  results.json  metrics/metrics.csv  predictions/*.jsonl  skipped.jsonl  train.log
evaluations/a                    results.json                       predictions/*.jsonl  skipped.jsonl  evaluate.log
sweeps/a/0, 1, …    the same, and job.json; of a job that failed, perhaps job.json alone
"""

import csv
import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ssl_asr.config.sweeps import Note, read_jobs
from ssl_asr.data.inputs import matching
from ssl_asr.errors import ConfigError, ManifestError, UserError
from ssl_asr.metrics.comparison import prediction_files
from ssl_asr.metrics.curves import parse_metrics
from ssl_asr.metrics.report import Prediction, read_predictions
from ssl_asr.metrics.systems import system_names
from ssl_asr.textfiles import from_json

T = TypeVar("T")
Curve = list[tuple[float, float]]
"""Updates and values of a logged number."""

# Any of these shows that a folder holds a run or an evaluation.
_SIGNS = ("config.yaml", "results.json", "metrics/metrics.csv", "predictions", "train.log", "evaluate.log")
# Characters at the end of a log that are kept.
_MOST_LOG = 100_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run or an evaluation, as far as it can be read.

    Attributes:
        name: Short name, different for different runs.
        path: Its folder, or a file of predictions.
        config: Its configuration. Empty if it is missing.
        results: The content of ``results.json``. Empty if it is missing.
        curves: Logged numbers by name.
        splits: Predictions of each split. A split without an utterance is left out.
        skipped: Lines of ``skipped.jsonl``.
        log: End of what the command showed.
        note: What a job of a sweep says about itself. None without.
        missing: What is missing or damaged, in words.
    """

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    splits: dict[str, list[Prediction]] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""
    note: Note | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """``done``, ``failed``, ``interrupted``, ``running`` as a sweep notes it, or ``unfinished`` without results."""
        if self.note is not None:
            return self.note.status
        return "done" if self.results or (self.splits and not self.config) else "unfinished"

    def fact(self, key: str) -> Any:
        """A value of ``run`` in ``results.json``, or None."""
        about = self.results.get("run")
        return about.get(key) if isinstance(about, dict) else None

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, or None."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def option(self, key: str) -> str:
        """The name of the class of an option, such as ``TopK``, or ""."""
        target = self.setting(key, "_target_")
        return str(target).rpartition(".")[2] if target else ""

    def last(self, name: str) -> float | None:
        """The last value of a logged number, or None."""
        curve = self.curves.get(name)
        return curve[-1][1] if curve else None

    def recorded(self, split: str) -> dict[str, dict[str, Any]]:
        """Scores of a split in ``results.json``, by normalizer."""
        row = self.results.get(split)
        scores = row.get("scores") if isinstance(row, dict) else None
        return {name: one for name, one in scores.items() if isinstance(one, dict)} if isinstance(scores, dict) else {}


def find_runs(names: Sequence[str]) -> list[Run]:
    """The runs that folders, files of predictions, wildcards and folders of sweeps name, each once.

    Raises:
        ConfigError: A name is none of them.
    """
    found: dict[Path, tuple[Path, Note | None]] = {}
    for name in names:
        for path, note in _expanded(name):
            found.setdefault(path.resolve(), (path, note))
    paths = [path for path, _ in found.values()]
    labels = system_names(paths)
    return [_read(path, label, note) for label, (path, note) in zip(labels, found.values(), strict=True)]


def _expanded(name: str) -> list[tuple[Path, Note | None]]:
    path = Path(name).expanduser()
    if not path.exists() and glob.has_magic(name):
        runs = [one for one in matching(str(path), "runs") if one.is_dir() and (_is_run(one) or read_jobs(one))]
        if not runs:
            raise ConfigError("runs", f"what {name} matches is no run", "check the pattern")
        return [each for one in runs for each in _expanded(str(one))]
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise ConfigError("runs", f"no file or folder '{name}'", "give the folder of a run or a sweep")
    if _is_run(path):
        own = [note for folder, note in read_jobs(path) if folder == path]
        return [(path, own[0] if own else None)]
    jobs: list[tuple[Path, Note | None]] = [*read_jobs(path)]
    jobs = jobs or [(one, None) for one in sorted(path.iterdir()) if one.is_dir() and _is_run(one)]
    if not jobs:
        what = f"{name} is neither a run nor a sweep: it has no results.json, predictions, metrics or config.yaml"
        raise ConfigError("runs", what, "give the folder of a run, an evaluation or a sweep")
    return jobs


def _is_run(path: Path) -> bool:
    return any((path / sign).exists() for sign in _SIGNS)


def _read(path: Path, name: str, note: Note | None) -> Run:
    """Read a run. Raises nothing but errors of a file of predictions that the user named."""
    if path.is_file():
        rows = read_predictions(path)
        if not rows:
            raise ManifestError(str(path), "has no predictions", "give a file that evaluate or train wrote")
        return Run(name=name, path=path, splits={path.stem: rows}, missing=["a file of predictions alone"])
    missing: list[str] = []
    reader = _Reader(path, missing)
    nothing: dict[str, Any] = {}
    no_rows: list[dict[str, Any]] = []
    no_predictions: list[Prediction] = []
    results = reader.read("results.json", _json, nothing, "the run did not finish, or it has no dev or test set")
    config = reader.read("config.yaml", _yaml, nothing, "" if _evaluates(path) else "its settings are not known")
    no_curves: dict[str, Curve] = {}
    curves = reader.read(
        "metrics/metrics.csv",
        partial(_curves, missing=missing),
        no_curves,
        "" if _evaluates(path) else "no curves (logger=none)",
    )
    splits = {}
    for split, file in prediction_files(path).items():
        rows = reader.read(f"predictions/{file.name}", read_predictions, no_predictions, "")
        if rows:
            splits[split] = rows
    if not splits:
        missing.append("predictions: none, so errors are not broken down")
    skipped = reader.read("skipped.jsonl", _lines, no_rows, "what was left out is not known")
    log = next((name for name in ("train.log", "evaluate.log") if (path / name).is_file()), None)
    return Run(
        name=name,
        path=path,
        config=config,
        results=results,
        curves=curves,
        splits=splits,
        skipped=skipped,
        log="" if log is None else (path / log).read_text(encoding="utf-8", errors="replace")[-_MOST_LOG:],
        note=note,
        missing=missing,
    )


def _evaluates(path: Path) -> bool:
    """Whether a folder is of an evaluation, which has no curves."""
    return not any((path / name).exists() for name in ("config.yaml", "checkpoints", "train.log", "metrics"))


@dataclass(frozen=True)
class _Reader:
    """Reads the files of a folder, and notes those that are missing or damaged."""

    folder: Path
    missing: list[str]

    def read(self, name: str, parse: Callable[[Path], T], otherwise: T, without: str) -> T:
        """The parsed file. If it is missing, ``without`` says what that means; "" says nothing."""
        path = self.folder / name
        if not path.is_file():
            if without:
                self.missing.append(f"{name}: {without}")
            return otherwise
        try:
            return parse(path)
        except (UserError, OSError, ValueError, yaml.YAMLError, csv.Error) as error:
            self.missing.append(f"{name} cannot be read: {' '.join(str(error).split())}")
            return otherwise


def _json(path: Path) -> dict[str, Any]:
    return _mapping(from_json(path.read_bytes(), str(path), error=ManifestError, remedy="run evaluate again"), path)


def _yaml(path: Path) -> dict[str, Any]:
    return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), path)


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(str(path), "is not a mapping", "run the command again")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = [
        from_json(line, f"{path}:{number}", error=ManifestError, remedy="run the command again")
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if line.strip()
    ]
    return [_mapping(row, path) for row in rows]


def _curves(path: Path, missing: list[str]) -> dict[str, Curve]:
    """The finite values of ``metrics.csv``. Other values and damaged lines are noted."""
    curves: dict[str, Curve] = {}
    damaged: list[int] = []
    for name, rows in parse_metrics(path, damaged).items():
        finite = [(float(x), y) for x, y in rows if math.isfinite(y)]
        if finite:
            curves[name] = finite
        if len(finite) < len(rows):
            left_out = len(rows) - len(finite)
            missing.append(f"{name}: {left_out} of {len(rows)} values are not finite, and are not in the curve")
    if damaged:
        missing.append(f"metrics/metrics.csv: {len(damaged)} damaged lines, the first is line {damaged[0]}")
    return curves


def plain(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a configuration as texts, by their dotted keys. Options are named by their class.

    Example:
        >>> plain({"head": {"_target_": "a.b.LinearHead", "dropout": 0.1}})
        {'head': 'LinearHead', 'head.dropout': '0.1'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if key == "_target_":
            found[prefix.rstrip(".")] = str(value).rpartition(".")[2]
        elif isinstance(value, dict) and value:
            found |= plain(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
    return found


def renamed(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs with other names."""
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
