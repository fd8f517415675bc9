"""JSON Lines manifests, kept as bytes and an index so that worker processes share the memory.

The format is a superset of NeMo's. Each line is a JSON object with ``audio_filepath`` (relative to the manifest) and
``text``. Optional keys: ``duration`` in seconds, ``references`` (further texts of the same speech), ``id``, ``offset``,
``lang``, ``task``, ``channel``, ``weight``. All other keys are kept in ``Utterance.tags``, of which Whisper reads
``prompt``. ``audio_filepath`` may also name a member of a tar, or an address, see `ssl_asr.data.files`. If ``duration``
is missing, it is that of the audio file from ``offset`` on. If ``text`` is missing, it is the first of ``references``.
"""

import codecs
import hashlib
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.audio import audio_duration_s
from ssl_asr.data.confinement import check_confined
from ssl_asr.data.languages import given_language, language_of
from ssl_asr.data.line_index import Block, LineIndex, ManifestBytes, id_hash, is_large, store_index, stored_index
from ssl_asr.data.manifest_lines import default_id, has_values, loaded, loaded_texts, parsed, plain_rows, utterance_of
from ssl_asr.data.parallel import map_ranges
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserError, collecting, naming, raise_all
from ssl_asr.textfiles import other_unicode, shown, to_json
from ssl_asr.types import Seconds, Utterance

# Lines that are read at once, unless the file has more than this many times their bytes between the first and the last.
_READ_LINES, _SPARSE = 1_000, 4
# Threads that measure audio.
_THREADS = 8


@dataclass(frozen=True)
class _Source:
    """A file of a manifest: path, folder where relative audio paths start, name of the corpus, bytes, their SHA-256."""

    path: Path
    folder: str
    corpus: str
    data: ManifestBytes
    digest: str


class Manifest(Sequence[Utterance]):
    """Utterances of a manifest, stored as its bytes and the place of each line. Lines are parsed on access.

    Worker processes share the arrays. A list of dicts would be copied into every worker, because reading it changes
    reference counts.

    Args:
        path: Path of the manifest. Relative audio paths start at its folder.
        data: Bytes of the file.
        lines: Place, duration and hash of the id of each line.
        digest: SHA-256 of the bytes of a file. Default: empty (not known).
    """

    def __init__(self, *, path: Path, data: ManifestBytes, lines: LineIndex, digest: str = "") -> None:
        self.path, self.lines = path, lines
        self._sources = [_Source(path, str(path.parent), "", data, digest)]
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
            return list(self._utterances(np.arange(*index.indices(len(self)))))
        source = self._sources[self._source_N[index]]
        line = source.data.read(int(self.lines.starts_N[index]), int(self.lines.lengths_N[index]))
        where = f"{source.path}:{self.lines.numbers_N[index]}"
        return utterance_of(loaded(line), where, source.folder, float(self.durations_N[index]))

    def __iter__(self) -> Iterator[Utterance]:
        places = np.arange(len(self))
        # One by one: garbage collection, which many objects at once start, would copy the memory of worker processes.
        return (one for i in range(0, len(self), _READ_LINES) for one in self._utterances(places[i : i + _READ_LINES]))

    def texts(self, start: int, end: int) -> Iterator[tuple[list[str], str | None]]:
        """References and language of consecutive utterances, several times as quick to read as utterances."""
        languages: dict[str | None, str | None] = {}
        for line, *_ in self._read(np.arange(start, end)):
            texts, lang = loaded_texts(line)
            if lang not in languages:
                languages[lang] = given_language(lang)
            yield texts, languages[lang]

    def _utterances(self, indices_N: NDArray[np.int64]) -> Iterator[Utterance]:
        for line, number, duration, source in self._read(indices_N):
            yield utterance_of(loaded(line), f"{source.path}:{number}", source.folder, duration)

    def _read(self, indices_N: NDArray[np.int64]) -> Iterator[tuple[bytes, int, Seconds, _Source]]:
        """Line, number, duration and file. Lines that are close together in a file are read at once."""
        lines = self.lines.select(indices_N)
        starts, lengths = lines.starts_N.tolist(), lines.lengths_N.tolist()
        sources_N = self._source_N[indices_N]
        together = len(lines) > 0 and bool((sources_N == sources_N[0]).all())
        first, span = (min(starts), max(map(operator.add, starts, lengths)) - min(starts)) if together else (0, 0)
        together = together and span <= _SPARSE * sum(lengths)
        block = self._sources[sources_N[0]].data.read(first, span) if together else b""
        fields = zip(
            starts, lengths, lines.numbers_N.tolist(), lines.durations_N.tolist(), sources_N.tolist(), strict=True
        )
        for start, length, number, duration, which in fields:
            source = self._sources[which]
            line = block[start - first : start - first + length] if together else source.data.read(start, length)
            yield line, number, duration, source

    @property
    def file(self) -> Path | None:
        """The first file of a large manifest, beside which more can be kept about it. None for a small one."""
        return self._sources[0].path if is_large(self.lines) else None

    def content_key(self) -> str | None:
        """A hash of the bytes of the files and of the choice of lines. None if the utterances come from no file."""
        if not all(source.digest for source in self._sources):
            return None
        found = hashlib.sha256("".join(source.digest for source in self._sources).encode())
        for array_N in (self._source_N, self.lines.starts_N):
            found.update(array_N.tobytes())
        return found.hexdigest()

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
    _check_languages([found.langs])
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
    invalid: list[ManifestError] | None = None,
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
        invalid: List that the errors of invalid lines are appended to. These lines are left out. Default: None (they
            are raised).

    Raises:
        ManifestError: The file does not exist or has no utterance.
        ManifestError, UserErrors: Lines are invalid or have duplicate ids, or audio without ``duration`` cannot be
            read, or lies outside ``root``. Lists all errors, with ``file:line``.
        ConfigError: No line has the values of ``only``.
    """
    path, wanted = Path(path), {key: str(value) for key, value in (only or {}).items()}
    data = _opened(path)
    digest, blocks = data.survey()
    index = None if wanted else stored_index(path, digest)
    # An index is stored only for a manifest without errors and with distinct ids.
    if index is None or (require_text and not index.has_texts):
        index, errors = _checked(path, data, blocks, wanted, require_text=require_text, unique_ids=unique_ids)
        if invalid is None or not len(index):
            raise_all(errors)
        else:
            invalid += errors
        if not len(index):
            raise ManifestError(str(path), "has no utterance", "write one JSON object per line")
        if not wanted and unique_ids and not errors:
            store_index(path, digest, index)
    manifest = Manifest(path=path, data=data, lines=index, digest=digest)
    if root is not None:
        check_confined(manifest, root, key=root_key)
    if measure:
        _measure(manifest)
    return manifest


def read_named(
    paths: Mapping[str, str], *, only: Mapping[str, Any] | None = None, root: str | Path | None = None
) -> dict[str, Manifest]:
    """Read the manifests of the config key ``manifest``.

    Args:
        paths: Paths by name.
        only, root: See `read_manifest`.

    Raises:
        ManifestError, ConfigError, UserErrors: Lists the errors of all manifests.
    """
    manifests: dict[str, Manifest] = {}
    errors: list[UserError] = []
    for name, path in paths.items():
        with collecting(errors), naming("manifest", path):
            manifests[name] = read_manifest(path, only=only, root=root)
    raise_all(errors)
    return manifests


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
    path: Path,
    data: ManifestBytes,
    blocks: Sequence[Block],
    wanted: Mapping[str, str],
    *,
    require_text: bool,
    unique_ids: bool,
) -> tuple[LineIndex, list[ManifestError]]:
    """Index of all right lines with the values of ``wanted``, and the errors of all others. See `read_manifest`."""

    def check(first: int, end: int) -> tuple[LineIndex, dict[str | None, str], list[ManifestError], int]:
        found, errors, left_out = _Lines(path), list[ManifestError](), 0
        lines = [line for block in blocks[first:end] for line in _lines(data, block)]
        rows = plain_rows([line for _, _, line in lines], require_text=require_text)
        for (number, start, line), row in zip(lines, rows, strict=True):
            invalid: list[ManifestError] = []
            if row is None:
                row, invalid = parsed(line, f"{path}:{number}", require_text=require_text)
            if invalid:
                errors += invalid
            elif wanted and not has_values(row, wanted):
                left_out += 1
            else:
                found.add(row, number, start, len(line))
        return found.index(), found.langs, errors, left_out

    each = [(i, i + 1) for i in range(len(blocks))]
    indices, langs, faults, left = (
        zip(*map_ranges(check, each, lines=blocks[-1].number), strict=True) if each else [()] * 4
    )
    index = LineIndex.joined(indices) if indices else _Lines(path).index()
    _check_languages(langs)
    errors = [error for some in faults for error in some]
    if unique_ids:
        errors += _repeated_ids(Manifest(path=path, data=data, lines=index))
    if not len(index) and sum(left) > 0 and not errors:
        raise ConfigError("only", f"no line of {path} has {wanted}", "check the keys of the manifest")
    return index, errors


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


def _lines(data: ManifestBytes, block: Block) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of each line that is not blank. Byte order marks are left out."""
    start = block.start
    for number, line in enumerate(data.read(block.start, block.length).split(b"\n"), block.number):
        if line.isspace() or not line:
            pass
        elif not line.startswith(codecs.BOM_UTF8):
            yield number, start, line
        elif (rest := _without_marks(line)).strip():
            yield number, start + len(line) - len(rest), rest
        start += len(line) + 1


def _without_marks(line: bytes) -> bytes:
    """A line without byte order marks at its start. Files that were joined may have several."""
    while line.startswith(codecs.BOM_UTF8):
        line = line.removeprefix(codecs.BOM_UTF8)
    return line


def _check_languages(langs: Iterable[Mapping[str | None, str]]) -> None:
    """Warn of unknown languages. Maps languages to the first line that names each."""
    first: dict[str | None, str] = {}
    for some in langs:
        for lang, where in some.items():
            if first.setdefault(lang, where) == where:
                language_of(lang, where)


class _Lines:
    """Collects the index of the lines that a manifest keeps.

    Attributes:
        langs: The languages of the lines, each with the place of the first one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.langs: dict[str | None, str] = {}
        self._rows: list[tuple[int, int, int, Seconds, int]] = []
        self._has_texts = True

    def add(self, row: Mapping[str, Any], number: int, start: int, length: int) -> None:
        """Add a line."""
        if (lang := row.get("lang")) not in self.langs:
            self.langs[lang] = f"{self.path}:{number}"
        duration = row.get("duration")
        self._rows.append(
            (
                start,
                length,
                number,
                math.nan if duration is None else duration,
                id_hash(row.get("id") or default_id(row)),
            )
        )
        has_text = row.get("text") is not None or row.get("references") is not None
        self._has_texts = self._has_texts and has_text

    def index(self) -> LineIndex:
        """The index of all added lines."""
        starts, lengths, numbers, durations, ids = zip(*self._rows, strict=True) if self._rows else [()] * 5
        return LineIndex(
            starts_N=np.array(starts, dtype=np.int64),
            lengths_N=np.array(lengths, dtype=np.uint32),
            numbers_N=np.array(numbers, dtype=np.uint32),
            durations_N=np.array(durations, dtype=np.float64),
            ids_N=np.array(ids, dtype=np.uint64),
            has_texts=self._has_texts,
        )
