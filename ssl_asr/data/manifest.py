"""Read JSON Lines manifests, packed so that worker processes share the memory.

A manifest is a superset of NeMo's: one JSON object a line with ``audio_filepath`` (relative to the manifest),
``duration`` in seconds and ``text``; optionally ``id offset lang task channel weight``; any other key is kept
in ``Utterance.tags``.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import ConfigError, ManifestError, raise_all
from ssl_asr.types import Seconds, Utterance

_KNOWN = {"audio_filepath", "duration", "text", "id", "offset", "lang", "task", "channel", "weight"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# field -> (is it right?, what it should be)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio_filepath": (lambda v: isinstance(v, str) and v != "", "a path"),
    "duration": (lambda v: _is_number(v) and v > 0, "a positive number of seconds"),
    "text": (lambda v: isinstance(v, str), "a string"),
    "id": (lambda v: isinstance(v, str) and v != "", "a non-empty string"),
    "offset": (lambda v: _is_number(v) and v >= 0, "a number of seconds, 0 or more"),
    "lang": (lambda v: isinstance(v, str), "a language code"),
    "task": (lambda v: v in ("transcribe", "translate"), "'transcribe' or 'translate'"),
    "channel": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
        "a channel number from 0",
    ),
    "weight": (lambda v: _is_number(v) and v >= 0, "a number, 0 or more"),
}


def _check_row(row: Any, where: str, *, require_text: bool) -> list[ManifestError]:
    """Every mistake of one parsed line."""
    if not isinstance(row, dict):
        return [ManifestError(where, f"is a JSON {type(row).__name__}", "write one {…} object a line")]
    errors = []
    required = ("audio_filepath", "duration", "text") if require_text else ("audio_filepath", "duration")
    for name, (is_right, expected) in _FIELDS.items():
        if row.get(name) is None:
            if name in required:
                errors.append(ManifestError(where, f"lacks '{name}'", f"add {expected}"))
        elif not is_right(row[name]):
            errors.append(ManifestError(where, f"'{name}' is {row[name]!r}", f"it should be {expected}"))
    return errors


def _default_id(row: dict[str, Any]) -> str:
    stem = Path(row["audio_filepath"]).with_suffix("").as_posix()
    offset = row.get("offset")
    return stem if offset is None else f"{stem}@{offset}"


def _utterance(row: dict[str, Any], where: str, folder: Path) -> Utterance:
    return Utterance(
        id=row.get("id") or _default_id(row),
        audio_filepath=str(folder / row["audio_filepath"]),
        duration=float(row["duration"]),
        text=row.get("text") or "",
        offset=float(row.get("offset") or 0.0),
        lang=row.get("lang"),
        task=row.get("task"),
        channel=row.get("channel"),
        weight=1.0 if row.get("weight") is None else float(row["weight"]),
        where=where,
        tags={key: value for key, value in row.items() if key not in _KNOWN},
    )


class Manifest(Sequence[Utterance]):
    """The utterances of a manifest, held as one byte array and one offset array.

    A list of dicts would be copied page by page into every worker process; two arrays are shared. A line is
    parsed when it is asked for.

    Args:
        path: the file the lines came from; relative audio paths start at its folder.
        data_N: the file's bytes (uint8).
        starts_N: the byte where each kept line starts (int64).
        lines_N: the 1-based number of each kept line (int64).
        durations_N: seconds of each kept line (float64).
    """

    def __init__(
        self,
        *,
        path: Path,
        data_N: NDArray[np.uint8],
        starts_N: NDArray[np.int64],
        lines_N: NDArray[np.int64],
        durations_N: NDArray[np.float64],
    ) -> None:
        self.path = path
        self._data, self._starts, self._lines = data_N, starts_N, lines_N
        self.durations_N = durations_N

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = json.loads(self._line_at(int(self._starts[index])))
        return _utterance(row, f"{self.path}:{self._lines[index]}", self.path.parent)

    def _line_at(self, start: int) -> bytes:
        chunk = 4096
        while True:
            piece = self._data[start : start + chunk].tobytes()
            end = piece.find(b"\n")
            if end >= 0 or start + chunk >= len(self._data):
                return piece if end < 0 else piece[:end]
            chunk *= 4

    def __iter__(self) -> Iterator[Utterance]:
        return (self[i] for i in range(len(self)))

    @property
    def total_s(self) -> Seconds:
        """Seconds of speech in all."""
        return float(self.durations_N.sum())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "Manifest":
        """The manifest with only these rows, sharing the bytes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Manifest(
            path=self.path,
            data_N=self._data,
            starts_N=self._starts[chosen],
            lines_N=self._lines[chosen],
            durations_N=self.durations_N[chosen],
        )


def pack_rows(rows: Sequence[dict[str, Any]], folder: Path) -> Manifest:
    """A manifest of rows that come from no file; relative audio paths start at ``folder``."""
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    return Manifest(
        path=folder / "<files>",
        data_N=np.frombuffer(b"".join(lines), dtype=np.uint8),
        starts_N=starts.astype(np.int64),
        lines_N=np.arange(1, len(lines) + 1, dtype=np.int64),
        durations_N=np.array([row["duration"] for row in rows], dtype=np.float64),
    )


def read_manifest(path: str | Path, *, require_text: bool = True, only: Mapping[str, Any] | None = None) -> Manifest:
    """Read a manifest whole, reporting every bad line.

    Args:
        path: a JSON Lines file in UTF-8; blank lines are passed over.
        require_text: whether a line without ``text`` is wrong (it is, but for transcribing).
        only: keys and the values that lines must have to be taken; ids need be unique among those only.

    Raises:
        ManifestError: the file is missing or empty, or lines are wrong: all of them, each as ``file:line``,
            duplicate ids included.
        ConfigError: no line has the values of ``only``.
    """
    wanted = {key: str(value) for key, value in (only or {}).items()}
    path = Path(path)
    if not path.is_file():
        raise ManifestError(str(path), "no such manifest", "give the path of a JSON Lines file")
    data = path.read_bytes()
    starts: list[int] = []
    lines: list[int] = []
    durations: list[float] = []
    errors: list[ManifestError] = []
    first_line_of: dict[str, int] = {}
    start = passed_over = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            row, found = _parse(line, f"{path}:{number}", require_text=require_text)
            if not found and any(str(row.get(key)) != value for key, value in wanted.items()):
                passed_over += 1
            elif not found:
                identity = row.get("id") or _default_id(row)
                if identity in first_line_of:
                    found = [
                        ManifestError(
                            f"{path}:{number}",
                            f"id '{identity}' is already at {path}:{first_line_of[identity]}",
                            "ids name utterances in every report, so each must be its own",
                        )
                    ]
                first_line_of.setdefault(identity, number)
                starts.append(start)
                lines.append(number)
                durations.append(float(row["duration"]))
            errors += found
        start += len(line) + 1
    raise_all(errors)
    if not starts and passed_over:
        raise ConfigError("only", f"no line of {path} has {wanted}", "check the manifest's keys")
    if not starts:
        raise ManifestError(str(path), "holds no utterance", "write one JSON object a line")
    return Manifest(
        path=path,
        data_N=np.frombuffer(data, dtype=np.uint8),
        starts_N=np.asarray(starts, dtype=np.int64),
        lines_N=np.asarray(lines, dtype=np.int64),
        durations_N=np.asarray(durations, dtype=np.float64),
    )


def _parse(line: bytes, where: str, *, require_text: bool) -> tuple[dict[str, Any], list[ManifestError]]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return {}, [ManifestError(where, f"is not UTF-8 (byte {error.start})", "save the file as UTF-8")]
    except json.JSONDecodeError as error:
        remedy = "write one JSON object a line"
        return {}, [ManifestError(where, f"is not valid JSON: {error.msg} at column {error.colno}", remedy)]
    return row, _check_row(row, where, require_text=require_text)
