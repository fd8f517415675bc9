"""JSON Lines manifests, kept as bytes and an index so that worker processes share the memory.

The format is a superset of NeMo's. Each line is a JSON object with ``audio_filepath`` (relative to the manifest) and
``text``. Optional keys: ``duration`` in seconds, ``id``, ``offset``, ``lang``, ``task``, ``channel``, ``weight``. All
other keys are kept in ``Utterance.tags``, of which Whisper reads ``prompt``. ``audio_filepath`` may also name a member
of a tar, or an address, see `ssl_asr.data.files`. If ``duration`` is missing, it is that of
the audio file from ``offset`` on.
"""

import codecs
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.audio import audio_duration_s
from ssl_asr.data.confinement import check_confined
from ssl_asr.data.languages import language_of
from ssl_asr.data.line_index import LineIndex, ManifestBytes, id_hash, store_index, stored_index
from ssl_asr.data.manifest_lines import check_row, default_id, has_values, loaded, parsed, plain_row, utterance_of
from ssl_asr.errors import AudioError, ConfigError, ManifestError, raise_all
from ssl_asr.textfiles import other_unicode, shown, to_json
from ssl_asr.types import Seconds, Utterance

# Threads that measure audio.
_THREADS = 8


@dataclass(frozen=True)
class _Source:
    """A file of a manifest: its path, the folder where relative audio paths start, its name, and its bytes."""

    path: Path
    folder: str
    corpus: str
    data: ManifestBytes


class Manifest(Sequence[Utterance]):
    """Utterances of a manifest, stored as its bytes and the place of each line. Lines are parsed on access.

    Worker processes share the arrays. A list of dicts would be copied into every worker, because reading it changes
    reference counts.

    Args:
        path: Path of the manifest. Relative audio paths start at its folder.
        data: Bytes of the file.
        lines: Place, duration and hash of the id of each line.
    """

    def __init__(self, *, path: Path, data: ManifestBytes, lines: LineIndex) -> None:
        self.path, self.lines = path, lines
        self._sources = [_Source(path, str(path.parent), "", data)]
        self._source_N = np.zeros(len(lines), dtype=np.uint16)

    @classmethod
    def joined(cls, manifests: Mapping[str, "Manifest"], name: str) -> "Manifest":
        """All utterances of several manifests, one manifest after the other.

        Args:
            manifests: Manifests by the names of their corpora, see `corpora`.
            name: What messages call it in place of a path.
        """
        made = cls.__new__(cls)
        made.path, made._sources, sources = Path(name), [], []
        for corpus, manifest in manifests.items():
            sources.append(manifest._source_N + np.uint16(len(made._sources)))
            made._sources += [replace(source, corpus=corpus) for source in manifest._sources]
        made._source_N = np.concatenate(sources)
        made.lines = LineIndex.joined([manifest.lines for manifest in manifests.values()])
        return made

    @property
    def durations_N(self) -> NDArray[np.float64]:
        """float64, duration of each utterance in seconds."""
        return self.lines.durations_N

    @property
    def corpora(self) -> list[str]:
        """Name of the corpus of each utterance. Empty if the manifest was not joined."""
        names = [source.corpus for source in self._sources]
        return [names[source] for source in self._source_N.tolist()]

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source = self._sources[self._source_N[index]]
        line = source.data.read(int(self.lines.starts_N[index]), int(self.lines.lengths_N[index]))
        where = f"{source.path}:{self.lines.numbers_N[index]}"
        return utterance_of(loaded(line), where, source.folder, float(self.durations_N[index]))

    def __iter__(self) -> Iterator[Utterance]:
        return (self[i] for i in range(len(self)))

    @property
    def total_s(self) -> Seconds:
        """Sum of the durations, in seconds."""
        return float(self.durations_N.sum())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "Manifest":
        """Manifest with the utterances at ``indices``. The bytes are shared."""
        chosen_N, made = np.asarray(indices, dtype=np.int64), copy(self)
        made.lines, made._source_N = self.lines.select(chosen_N), self._source_N[chosen_N]
        return made


def pack_rows(rows: Sequence[dict[str, Any]], folder: Path) -> Manifest:
    """Manifest of rows that do not come from one file. Relative audio paths start at ``folder``.

    A row may say where it comes from under the key `WHERE`.
    """
    lines, found = [to_json(row).encode() + b"\n" for row in rows], _Lines(folder / "<files>")
    starts = np.cumsum([0, *map(len, lines)])[:-1].tolist()
    for number, (row, start, line) in enumerate(zip(rows, starts, lines, strict=True), start=1):
        found.add(row, number, start, len(line))
    data = ManifestBytes(found.path, b"".join(lines))
    return Manifest(path=found.path, data=data, lines=found.index())


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
    data = _opened(path)
    digest = data.digest()
    index = None if wanted else stored_index(path, digest)
    # An index is stored only for a manifest without errors and with distinct ids.
    if index is None or (require_text and not index.has_texts):
        index = _checked(path, data, wanted, require_text=require_text, unique_ids=unique_ids)
        if not wanted and unique_ids:
            store_index(path, digest, index)
    manifest = Manifest(path=path, data=data, lines=index)
    if root is not None:
        check_confined(manifest, root, key=root_key)
    if measure:
        _measure(manifest)
    return manifest


def _opened(path: Path) -> ManifestBytes:
    """The bytes of a manifest.

    Raises:
        ManifestError: There is no such file, it cannot be read, or it is in another encoding than UTF-8.
    """
    try:
        if not path.is_file():
            raise ManifestError(str(path), "no such manifest", "give the path of a JSON Lines file")
        data = ManifestBytes(path)
        start = data.read(0, 4)
    except OSError as error:
        raise ManifestError(str(path), f"cannot be opened: {error.strerror}", "check its permissions") from None
    if (encoding := other_unicode(start)) is not None:
        raise ManifestError(str(path), f"is text in {encoding}, expected UTF-8", "save the file as UTF-8")
    return data


def _checked(
    path: Path, data: ManifestBytes, wanted: Mapping[str, str], *, require_text: bool, unique_ids: bool
) -> LineIndex:
    """Index of all lines with the values of ``wanted``, each of which is checked. See `read_manifest`."""
    found, errors, left_out = _Lines(path), list[ManifestError](), 0
    for number, start, line in _lines(data):
        row = plain_row(line)
        invalid: list[ManifestError] = []
        if row is None or check_row(row, "", require_text=require_text):
            row, invalid = parsed(line, f"{path}:{number}", require_text=require_text)
        if invalid:
            errors += invalid
        elif wanted and not has_values(row, wanted):
            left_out += 1
        else:
            found.add(row, number, start, len(line))
    index = found.index()
    if unique_ids:
        errors += _repeated_ids(Manifest(path=path, data=data, lines=index))
    raise_all(errors)
    if not len(index) and left_out > 0:
        raise ConfigError("only", f"no line of {path} has {wanted}", "check the keys of the manifest")
    if not len(index):
        raise ManifestError(str(path), "has no utterance", "write one JSON object per line")
    return index


def _repeated_ids(manifest: Manifest) -> list[ManifestError]:
    """An error for each line whose id is that of a line before."""
    ids_N = manifest.lines.ids_N
    order_N = np.argsort(ids_N, kind="stable")
    same_N = ids_N[order_N][1:] == ids_N[order_N][:-1]
    suspects = np.union1d(order_N[1:][same_N], order_N[:-1][same_N]).tolist()
    first: dict[str, str] = {}
    errors = []
    for utterance in (manifest[i] for i in suspects):
        if (earlier := first.setdefault(utterance.id, utterance.where)) != utterance.where:
            what = f"id {shown(utterance.id)} is already used at {earlier}"
            errors.append(ManifestError(utterance.where, what, "give each utterance an id of its own"))
    return errors


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
        return audio_duration_s(path, where=where)
    except AudioError as error:
        return error


def _lines(data: ManifestBytes) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte offset and content of each line that is not blank. A byte order mark is left out."""
    number = 1
    for offset, chunk in data.chunks():
        start = offset
        for line in chunk.split(b"\n"):
            if line.isspace() or not line:
                pass
            elif not line.startswith(codecs.BOM_UTF8):
                yield number, start, line
            elif (rest := line.removeprefix(codecs.BOM_UTF8)).strip():
                yield number, start + len(codecs.BOM_UTF8), rest
            number, start = number + 1, start + len(line) + 1
        number -= chunk.endswith(b"\n")


class _Lines:
    """Collects the index of the lines that a manifest keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lengths, self._numbers = array("q"), array("L"), array("L")
        self._durations, self._ids = array("d"), array("Q")
        self._langs: set[str | None] = set()
        self._has_texts = True

    def add(self, row: Mapping[str, Any], number: int, start: int, length: int) -> None:
        """Add a line."""
        if (lang := row.get("lang")) not in self._langs:
            language_of(lang, f"{self.path}:{number}")
            self._langs.add(lang)
        duration = row.get("duration")
        self._starts.append(start)
        self._lengths.append(length)
        self._numbers.append(number)
        self._durations.append(math.nan if duration is None else duration)
        self._ids.append(id_hash(row.get("id") or default_id(row)))
        self._has_texts = self._has_texts and row.get("text") is not None

    def index(self) -> LineIndex:
        """The index of all added lines."""
        return LineIndex(
            starts_N=np.array(self._starts, dtype=np.int64),
            lengths_N=np.array(self._lengths, dtype=np.uint32),
            numbers_N=np.array(self._numbers, dtype=np.uint32),
            durations_N=np.array(self._durations, dtype=np.float64),
            ids_N=np.array(self._ids, dtype=np.uint64),
            has_texts=self._has_texts,
        )
