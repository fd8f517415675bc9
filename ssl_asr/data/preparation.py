"""From sources to manifests: read, measure, check, split and write.

The way of an utterance::

    input  ->  kind  ->  rows  ->  measured rows  ->  splits  ->  files of a format
                          |             |
                          +-------------+--------->  skipped.jsonl
"""

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from ssl_asr.console import TitledTable, tracked
from ssl_asr.data.audio import DURATION_TOLERANCE_S, audio_duration_s
from ssl_asr.data.corpora.archives import extract, is_archive
from ssl_asr.data.corpora.downloads import download, remote_of
from ssl_asr.data.files import Location, placed
from ssl_asr.data.folders import printable
from ssl_asr.data.formats.audiofolder import write_audiofolder
from ssl_asr.data.formats.kaldi import write_kaldi
from ssl_asr.data.formats.lhotse import write_lhotse
from ssl_asr.data.formats.manifests import DEFAULT_SHARDS, Shards, Target, write_manifest, write_nemo
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, Row, full_path
from ssl_asr.data.formats.shar import write_shar
from ssl_asr.data.formats.speechbrain import write_speechbrain_csv, write_speechbrain_json
from ssl_asr.data.kinds import KINDS, kind_of, read_source
from ssl_asr.data.manifest_lines import is_allowed
from ssl_asr.data.prepared import check_outputs, move_in
from ssl_asr.errors import AudioError, ConfigError, ManifestError
from ssl_asr.textfiles import is_unicode, shown, to_json, written_whole
from ssl_asr.types import Seconds, Skip

# Threads that measure audio. Decoding runs outside Python's lock.
_THREADS = 8
# Recordings with one text that are longer are named: few models can be trained on them.
_LONG_S = 40.0
# Formats that can hold audio in shards and behind addresses.
_ANY_AUDIO = ("manifest", "shar", "audiofolder")
# Folder of files that are not whole yet.
_STAGING = ".prepare.partial"

Write = Callable[[Target, str, Sequence[Row]], list[str]]
# format -> how a split is written, and the names of what is written
WRITERS: Mapping[str, tuple[Write, tuple[str, ...]]] = MappingProxyType(
    {
        "manifest": (write_manifest, ("{}.jsonl",)),
        "nemo": (write_nemo, ("{}_manifest.json",)),
        "kaldi": (write_kaldi, ("{}",)),
        "speechbrain_csv": (write_speechbrain_csv, ("{}.csv",)),
        "speechbrain_json": (write_speechbrain_json, ("{}.json",)),
        "lhotse": (write_lhotse, ("recordings_{}.jsonl.gz", "supervisions_{}.jsonl.gz")),
        "audiofolder": (write_audiofolder, ("{}",)),
        "shar": (write_shar, ("{}.jsonl", "{}")),
    }
)


@dataclass(slots=True)
class Corpus:
    """What is read from all sources, and what is left out of it.

    Attributes:
        rows: Utterances.
        skips: Everything that is left out, with reasons.
        notes: How sources were read.
    """

    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of utterances that the sources have."""
        return len(self.rows) + len(self.skips)

    @property
    def splits(self) -> dict[str, list[Row]]:
        """Rows by split, in the order of their first rows."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.split, []).append(row)
        return found


def read_sources(names: Sequence[str], kind: str, options: ReadOptions, digest: str | None) -> Corpus:
    """Read files, folders, archives and datasets, which are downloaded if they are addresses or names of corpora.

    Args:
        names: The sources.
        kind: Name of their kind, or ``auto``.
        options: How they are read.
        digest: Digest of a download whose corpus publishes none, such as ``sha256:…``.

    Raises:
        UserError: A source cannot be read.
    """
    corpus = Corpus()
    used: set[str] = set()
    for name in names:
        path = _local(name, options, digest, corpus.notes)
        own = kind_of(path) if kind == "auto" else kind
        used |= KINDS[own].keys
        corpus.notes.append(
            printable(f"{path}: kind={own}" + (f" ({KINDS[own].title})" if KINDS[own].title != own else ""))
        )
        found: Found = read_source(path, own, options)
        if not found.rows and not found.skips:
            raise ManifestError(str(path), f"has no utterance, read as kind={own}", "check kind")
        corpus.rows += found.rows
        corpus.skips += found.skips
        corpus.notes += [note for note in found.notes if note not in corpus.notes]
    unused = sorted(options.given - used)
    if unused:
        raise ConfigError(unused[0], "changes nothing for these inputs", f"leave out {' and '.join(unused)}")
    return corpus


def _local(name: str, options: ReadOptions, digest: str | None, notes: list[str]) -> Path:
    """The file or folder of a source, downloaded and extracted if need be."""
    remote = None if Path(name).exists() else remote_of(name, digest)
    path = Path(name)
    if remote is not None:
        path = download(remote, options.output / "downloads", progress=options.progress)
        if remote.digest is None:
            notes.append(f"{remote.url} has no digest to check: give digest=sha256:… if you know it")
    if is_archive(path):
        path = extract(path, options.output / "extracted", progress=options.progress)
    return path


# Checks ------------------------------------------------------------------------------------------------------------


def measure(corpus: Corpus, *, require_text: bool = True, name_long: bool = True, progress: bool = False) -> None:
    """Measure every audio file once, and leave out rows that cannot be used, each with its reason.

    A row without a duration gets what its file has after the offset. A given duration is kept if the file is as long.
    An id that is used by another row of the split gets a number at its end.

    Args:
        corpus: Its rows, skips and notes are changed.
        require_text: Whether rows without a text are left out.
        name_long: Whether to note long recordings that should be cut.
        progress: Whether to show a progress bar.
    """
    files = list(dict.fromkeys(row.audio for row in corpus.rows))
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        measured = pool.map(_length, files)
        bar = tracked(measured, "measure audio", total=len(files), shown=progress)
        lengths = dict(zip(files, bar, strict=True))
    kept: list[Row] = []
    ids = _Ids()
    for row in corpus.rows:
        fault = _fault(row, lengths[row.audio], require_text) or ids.repeated(row)
        if fault is not None:
            corpus.skips.append(_skip(row, *fault, lengths[row.audio]))
            continue
        length = lengths[row.audio]
        assert not isinstance(length, AudioError)
        duration = length - row.offset if row.duration is None else row.duration
        is_whole = row.offset == 0 and duration >= length - DURATION_TOLERANCE_S
        kept.append(replace(row, id=ids.unique(row), duration=duration, whole=is_whole))
    corpus.rows = kept
    long = untimed(kept, _LONG_S) if name_long else []
    if long:
        what = f"{len(long)} recordings are longer than {_LONG_S:g} s and have one text without times"
        corpus.notes.append(f"{what}, such as {long[0].id}. model=openai/whisper-base cuts them, as other models do")
    if ids.changed:
        examples = ", ".join(ids.changed[:3])
        corpus.notes.append(f"{len(ids.changed)} ids that are used twice get a number: {examples}")
    short = sum(not row.whole and row.offset == 0 and "segments" not in row.tags for row in kept)
    if short:
        corpus.notes.append(f"{short} utterances without an offset end before their file does")


def untimed(rows: Sequence[Row], longer_than: Seconds) -> list[Row]:
    """Rows that are whole recordings of more than this length, with one text without times."""
    whole = [row for row in rows if row.whole and row.text.strip() and "segments" not in row.tags]
    return [row for row in whole if (row.duration or 0.0) > longer_than]


class _Ids:
    """Ids and contents of rows that are kept. ``changed`` are the ids that got a number."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, str]] = set()
        self._first: dict[tuple[str, str], Row] = {}
        self.changed: list[str] = []

    def repeated(self, row: Row) -> tuple[str, str] | None:
        """Reason and detail if a row of the split says all the same."""
        content = to_json([row.id, row.audio, row.offset, row.duration, row.channel, row.text, row.tags])
        first = self._first.setdefault((row.split, content), row)
        return None if first is row else ("duplicate", f"is the same as {first.id} ({first.where or first.audio})")

    def unique(self, row: Row) -> str:
        """The id of the row, with a number if it is taken."""
        name, number = row.id, 1
        while (row.split, name) in self._taken:
            number += 1
            name = f"{row.id}-{number}"
        self._taken.add((row.split, name))
        if name != row.id:
            self.changed.append(name)
        return name


def _length(path: str) -> Seconds | AudioError:
    try:
        return audio_duration_s(path)
    except AudioError as error:
        return error


def _fault(row: Row, length: Seconds | AudioError, require_text: bool) -> tuple[str, str] | None:
    """Reason and detail if a row cannot be used."""
    if not is_unicode(row.id) or not is_unicode(row.audio) or not is_unicode(row.text):
        return "name", "the name or the text is not Unicode: rename the file"
    wrong = next((key for key, value in row.tags.items() if not is_allowed(key, value)), None)
    if wrong is not None:
        return "bad_value", f"'{wrong}' is {shown(row.tags[wrong])}, which a manifest cannot have"
    if isinstance(length, AudioError):
        return length.reason, str(length)
    if require_text and not row.text.strip():
        return "no_text", "its text is empty. require_text=false keeps it"
    if row.offset < 0 or (row.duration is not None and row.duration <= 0):
        return "bad_times", f"starts at {row.offset:g} s, and is {row.duration} s long"
    end = max(row.offset + (row.duration or 0.0), _last_end(row.tags.get("segments")))
    if row.offset >= length or end > length + DURATION_TOLERANCE_S:
        return "outside", f"is {row.offset:.2f} to {end:.2f} s, and {row.audio} ends at {length:.2f} s"
    return None


def _last_end(segments: Any) -> Seconds:
    """The last end of the segments of a row, or 0 if it has none."""
    rows = segments if isinstance(segments, list) else []
    ends = [each.get("end") for each in rows if isinstance(each, dict)]
    return max((float(end) for end in ends if isinstance(end, int | float)), default=0.0)


def _skip(row: Row, reason: str, detail: str, length: Seconds | AudioError) -> Skip:
    duration = row.duration or (0.0 if isinstance(length, AudioError) else max(0.0, length - row.offset))
    return Skip(printable(row.id), printable(row.where or row.audio), reason, printable(detail), duration)


# Writing -----------------------------------------------------------------------------------------------------------


def write_corpus(
    corpus: Corpus,
    kind: str,
    folder: Path,
    *,
    inputs: Sequence[str],
    shards: Shards = DEFAULT_SHARDS,
    progress: bool = False,
) -> list[Path]:
    """Write all splits in a format. Files get their names when all are whole. Returns their paths.

    What an earlier preparation wrote in the folder is replaced.

    Args:
        corpus: Its notes are changed.
        kind: Name of the format.
        folder: The output folder.
        inputs: What the corpus was read from, for the record in the folder.
        shards: How shards are written.
        progress: Whether to show a progress bar for shards.

    Raises:
        UserError: The format cannot hold a row.
    """
    write, names = WRITERS[kind]
    check_outputs(folder, names, list(corpus.splits))
    _check_files(corpus, kind)
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    home = Path(os.path.realpath(folder))
    try:
        target = Target(staging, _placed(home), home, shards, progress)
        for split, rows in corpus.splits.items():
            corpus.notes += [note for note in write(target, split, rows) if note not in corpus.notes]
        written = [name.format(split) for split in corpus.splits for name in names]
        move_in(staging, folder, written, inputs=inputs)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in written]


def _check_files(corpus: Corpus, kind: str) -> None:
    """Refuse audio in shards or behind addresses in the formats of other toolkits, which name files."""
    other = next((row for row in corpus.rows if not Location.of(row.audio).is_file), None)
    if other is not None and kind not in _ANY_AUDIO:
        what = f"{other.audio} is no file of its own, and format={kind} names files"
        raise ManifestError(other.where or other.id, what, f"use format={' or '.join(_ANY_AUDIO)}")


def _placed(home: Path) -> Callable[[str], str]:
    """The path of an audio file as it is written.

    Relative if it is below the output folder, or below the folder that the output folder is in, so that this folder can
    be moved. Otherwise absolute. The root of the file system is not moved.
    """
    near = home if home.parent == home.parent.parent else home.parent

    def place(path: str) -> str:
        return placed(full_path(path), home, within=near)

    return place


def check_skips(corpus: Corpus, limit: float, path: Path) -> None:
    """Refuse a corpus of which too much is left out.

    Args:
        corpus: Rows and skips.
        limit: Largest fraction of the utterances that may be left out.
        path: File with all skips, for the error.

    Raises:
        ManifestError: More than this fraction is left out.
    """
    if len(corpus.skips) <= limit * corpus.count:
        return
    first = "; ".join(f"{skip.id}: {skip.reason}: {skip.detail}" for skip in corpus.skips[:5])
    what = f"{len(corpus.skips)} of {corpus.count} utterances are left out: {first}"
    raise ManifestError(str(path), what, f"correct them, or raise max_skip_fraction (now {limit:g})")


def write_skipped(path: Path, skips: Sequence[Skip]) -> None:
    """Write one line for each skip, without a place or a duration that is not known."""
    rows = ({key: value for key, value in asdict(skip).items() if value} for skip in skips)
    with written_whole(path) as file:
        file.writelines(to_json(row) + "\n" for row in rows)


def print_splits(corpus: Corpus, console: Console | None) -> None:
    """Print utterances, hours and speakers of each split, and on standard error how to divide a corpus without splits.

    Args:
        corpus: The corpus.
        console: Gets the table. None shows none.
    """
    if console is not None:
        _print_table(corpus, console)
    if list(corpus.splits) == [NO_SPLIT]:
        by = "" if all(row.speaker for row in corpus.rows) else " split_by=recording"
        print(f"To divide it: splits='{{train: 0.8, dev: 0.1, test: 0.1}}'{by} overwrite=true", file=sys.stderr)


def _print_table(corpus: Corpus, console: Console) -> None:
    table = TitledTable("Corpus")
    for column in ("split", "utterances", "recordings", "hours", "speakers"):
        table.add_column(column, justify="left" if column == "split" else "right")
    speakers: dict[str, set[str]] = defaultdict(set)
    for split, rows in corpus.splits.items():
        speakers[split] = {row.speaker for row in rows if row.speaker is not None}
        hours = sum(row.duration or 0.0 for row in rows) / 3600
        files = len({row.audio for row in rows})
        named = f"{len(speakers[split]):,}" if speakers[split] else "not known"
        table.add_row(split, f"{len(rows):,}", f"{files:,}", f"{hours:.2f}", named)
    console.print(table)
    shared = {name for one in speakers for other in speakers if one < other for name in speakers[one] & speakers[other]}
    if shared:
        console.print(f"speakers in several splits: {len(shared)} ({', '.join(sorted(shared)[:5])})")
