"""JSON Lines manifests, kept in two arrays so that worker processes share the memory.

The format is a superset of NeMo's. Each line is a JSON object with ``audio_filepath`` (relative to the manifest) and
``text``. Optional keys: ``duration`` in seconds, ``id``, ``offset``, ``lang``, ``task``, ``channel``, ``weight``. All
other keys are kept in ``Utterance.tags``, of which Whisper reads ``prompt``. If ``duration`` is missing, it is that of
the audio file from ``offset`` on.
"""

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.audio import audio_duration_s
from ssl_asr.data.confinement import check_confined
from ssl_asr.data.languages import given_language, language_of, same_language
from ssl_asr.errors import AudioError, ConfigError, ManifestError, raise_all
from ssl_asr.textfiles import from_json, is_system_text, is_unicode, other_unicode, shown, to_json
from ssl_asr.types import Seconds, Utterance

# Threads that measure audio.
_THREADS = 8
# Key of rows that do not come from one file: where each comes from.
WHERE = "<where>"
_KNOWN = {"audio_filepath", "duration", "text", "id", "offset", "lang", "task", "channel", "weight", WHERE}
# Seconds, and weights, above this are mistakes: as samples, they would exceed what floats can hold.
_MOST = 1_000_000_000
# Characters of a path, which no file system allows more of, and the highest channel.
_LONGEST, _LAST_CHANNEL = 4095, 65_535


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_path(value: Any) -> bool:
    """Whether a value can be the path of a file. No file is named ``.`` or ``..``, or has a NUL in its name."""
    return isinstance(value, str) and value.strip("./") != "" and len(value) <= _LONGEST and is_system_text(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_unicode(value)


# key -> (check of its value, what the value should be)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio_filepath": (_is_path, "the path of a file"),
    "duration": (lambda v: _is_number(v) and v > 0, f"a positive number of seconds, at most {_MOST:,}"),
    "text": (_is_text, "a string of Unicode characters"),
    "prompt": (_is_text, "a string of Unicode characters"),
    "id": (lambda v: isinstance(v, str) and v != "", "a non-empty string"),
    "offset": (_is_number, f"a number of seconds from 0 to {_MOST:,}"),
    "lang": (lambda v: isinstance(v, str), "a language code"),
    "task": (lambda v: v in ("transcribe", "translate"), "'transcribe' or 'translate'"),
    "channel": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LAST_CHANNEL,
        "a channel number from 0",
    ),
    "weight": (_is_number, f"a number from 0 to {_MOST:,}"),
}


def _check_row(row: Any, where: str, *, require_text: bool) -> list[ManifestError]:
    """All errors of one parsed line."""
    if not isinstance(row, dict):
        return [ManifestError(where, f"is a JSON {type(row).__name__}", "write one JSON object per line")]
    errors = []
    if WHERE in row:
        errors.append(ManifestError(where, f"has the key '{WHERE}', which is in use", "rename the key"))
    required = ("audio_filepath", "text") if require_text else ("audio_filepath",)
    for name, (is_right, expected) in _FIELDS.items():
        if row.get(name) is None:
            if name in required:
                errors.append(ManifestError(where, f"has no '{name}'", f"add {expected}"))
        elif not is_right(row[name]):
            errors.append(ManifestError(where, f"'{name}' is {shown(row[name])}, expected {expected}"))
    return errors


def _default_id(row: Mapping[str, Any]) -> str:
    stem = Path(row["audio_filepath"]).with_suffix("").as_posix()
    offset = row.get("offset")
    return stem if offset is None else f"{stem}@{offset}"


def _utterance(row: dict[str, Any], where: str, folder: Path, duration: Seconds) -> Utterance:
    return Utterance(
        id=row.get("id") or _default_id(row),
        audio_filepath=str(folder / row["audio_filepath"]),
        duration=duration,
        text=row.get("text") or "",
        offset=float(row.get("offset") or 0.0),
        lang=given_language(row.get("lang")),
        task=row.get("task"),
        channel=row.get("channel"),
        weight=1.0 if row.get("weight") is None else float(row["weight"]),
        where=row.get(WHERE, where),
        tags={key: value for key, value in row.items() if key not in _KNOWN},
    )


class Manifest(Sequence[Utterance]):
    """Utterances of a manifest, stored as the bytes of the file and the offset of each line.

    Worker processes share the arrays. A list of dicts would be copied into every worker, because reading it changes
    reference counts. Lines are parsed on access.

    Args:
        path: Path of the manifest. Relative audio paths start at its folder.
        data_N: uint8, bytes of the file.
        starts_N: int64, byte offset of each line.
        lines_N: int64, number of each line, from 1.
        durations_N: float64, duration of each line in seconds.
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
        where = f"{self.path}:{self._lines[index]}"
        return _utterance(row, where, self.path.parent, float(self.durations_N[index]))

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
        """Sum of the durations, in seconds."""
        return float(self.durations_N.sum())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "Manifest":
        """Manifest with the utterances at ``indices``. The bytes are shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Manifest(
            path=self.path,
            data_N=self._data,
            starts_N=self._starts[chosen],
            lines_N=self._lines[chosen],
            durations_N=self.durations_N[chosen],
        )


def pack_rows(rows: Sequence[dict[str, Any]], folder: Path) -> Manifest:
    """Manifest of rows that do not come from one file. Relative audio paths start at ``folder``.

    A row may say where it comes from under the key `WHERE`.
    """
    lines = [to_json(row).encode() + b"\n" for row in rows]
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    return Manifest(
        path=folder / "<files>",
        data_N=np.frombuffer(b"".join(lines), dtype=np.uint8),
        starts_N=starts.astype(np.int64),
        lines_N=np.arange(1, len(lines) + 1, dtype=np.int64),
        durations_N=np.array([row["duration"] for row in rows], dtype=np.float64),
    )


def read_manifest(
    path: str | Path,
    *,
    require_text: bool = True,
    only: Mapping[str, Any] | None = None,
    unique_ids: bool = True,
    measure: bool = True,
    root: str | Path | None = None,
    root_key: str = "root",
) -> Manifest:
    """Read a manifest and check every line.

    Args:
        path: A JSON Lines file in UTF-8. Blank lines are ignored.
        require_text: Whether ``text`` is mandatory. Transcription does not need it.
        only: Keys and values. Lines with other values are left out, and their ids do not count as duplicates.
            Default: None (all lines).
        unique_ids: Whether duplicate ids are an error.
        measure: Whether to measure the audio of lines without ``duration``. If not, their duration is NaN.
        root: Folder that all audio must lie in, see `ssl_asr.data.confinement`. Default: None (any folder).
        root_key: Config key of ``root``, for messages.

    Raises:
        ManifestError: The file does not exist or has no utterance.
        ManifestError, UserErrors: Lines are invalid or have duplicate ids, or audio without ``duration`` cannot be
            read, or lies outside ``root``. Lists all errors, with ``file:line``.
        ConfigError: No line has the values of ``only``.
    """
    path, wanted = Path(path), {key: str(value) for key, value in (only or {}).items()}
    data = _content(path)
    index = _LineIndex(path, unique_ids)
    errors: list[ManifestError] = []
    left_out = 0
    for number, start, line in _lines(data):
        row, invalid = _parse(line, f"{path}:{number}", require_text=require_text)
        if invalid:
            errors += invalid
        elif not _has(row, wanted):
            left_out += 1
        else:
            errors += index.add(row, number, start)
    raise_all(errors)
    if not index.starts and left_out > 0:
        raise ConfigError("only", f"no line of {path} has {wanted}", "check the keys of the manifest")
    if not index.starts:
        raise ManifestError(str(path), "has no utterance", "write one JSON object per line")
    manifest = index.manifest(data)
    if root is not None:
        check_confined(manifest, root, key=root_key)
    if measure:
        _measure(manifest)
    return manifest


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ManifestError(str(path), "no such manifest", "give the path of a JSON Lines file")
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(str(path), f"cannot be opened: {error.strerror}", "check its permissions") from None
    if (encoding := other_unicode(data[:4])) is not None:
        raise ManifestError(str(path), f"is text in {encoding}, expected UTF-8", "save the file as UTF-8")
    return data


def _measure(manifest: Manifest) -> None:
    """Fill in missing durations from the audio files, each of which is decoded once.

    Raises:
        ManifestError, UserErrors: Files cannot be read, or end before the offset.
    """
    missing = np.flatnonzero(np.isnan(manifest.durations_N)).tolist()
    if not missing:
        return
    first_line = {(one := manifest[i]).audio_filepath: one.where for i in reversed(missing)}
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        lengths = dict(zip(first_line, pool.map(_length, first_line.items()), strict=True))
    errors = []
    for i in missing:
        utterance = manifest[i]
        length = lengths[utterance.audio_filepath]
        if isinstance(length, AudioError):
            what = f"has no 'duration', and its audio cannot be measured: {length.what}"
            errors.append(ManifestError(utterance.where, what, length.remedy))
        elif length <= utterance.offset:
            what = f"'offset' is {utterance.offset:g} s, and {utterance.audio_filepath} ends at {length:.2f} s"
            errors.append(ManifestError(utterance.where, what, "correct 'offset'"))
        else:
            manifest.durations_N[i] = length - utterance.offset
    raise_all(errors)


def _length(audio: tuple[str, str]) -> Seconds | AudioError:
    path, where = audio
    try:
        return audio_duration_s(Path(path), where=where)
    except AudioError as error:
        return error


def _lines(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte offset and content of each line that is not blank."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, start, line
        start += len(line) + 1


def _parse(line: bytes, where: str, *, require_text: bool) -> tuple[dict[str, Any], list[ManifestError]]:
    """The JSON object of a line, and all its errors."""
    try:
        row = from_json(line, where, error=ManifestError, remedy="write one JSON object per line")
    except ManifestError as error:
        return {}, [error]
    return row, _check_row(row, where, require_text=require_text)


def _has(row: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    return all(
        same_language(value, str(row.get(key))) if key == "lang" else str(row.get(key)) == value
        for key, value in wanted.items()
    )


@dataclass(slots=True)
class _LineIndex:
    """Offsets, numbers and durations of the lines that a manifest keeps."""

    path: Path
    unique_ids: bool = True
    starts: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    line_of_id: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], number: int, start: int) -> list[ManifestError]:
        """Add a line. Returns an error if its id is a duplicate and ids must be unique."""
        language_of(row.get("lang"), f"{self.path}:{number}")
        utterance_id = row.get("id") or _default_id(row)
        first = self.line_of_id.setdefault(utterance_id, number)
        self.starts.append(start)
        self.numbers.append(number)
        duration = row.get("duration")
        self.durations.append(math.nan if duration is None else float(duration))
        if first == number or not self.unique_ids:
            return []
        what = f"id {shown(utterance_id)} is already used at {self.path}:{first}"
        return [ManifestError(f"{self.path}:{number}", what, "give each utterance an id of its own")]

    def manifest(self, data: bytes) -> Manifest:
        """The manifest of all added lines."""
        return Manifest(
            path=self.path,
            data_N=np.frombuffer(data, dtype=np.uint8),
            starts_N=np.asarray(self.starts, dtype=np.int64),
            lines_N=np.asarray(self.numbers, dtype=np.int64),
            durations_N=np.asarray(self.durations, dtype=np.float64),
        )
