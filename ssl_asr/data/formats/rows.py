"""What a reader of a corpus gives, and what a writer gets: rows, and an account of all that is left out."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_asr.data.folders import is_file, printable
from ssl_asr.data.identity import file_key
from ssl_asr.errors import UserError
from ssl_asr.types import Seconds, Skip

# Split of rows whose source names none, and name of its manifest.
NO_SPLIT = "all"
# What the command reports, by the name in a corpus.
_SPLIT_NAMES = {"valid": "dev", "validation": "dev", "val": "dev", "eval": "dev"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One utterance of a corpus.

    Attributes:
        id: Name of the utterance, unique in its split.
        audio: Path of the audio file, absolute or relative to the working directory.
        text: Transcript.
        split: Part of the corpus.
        offset: Start in the file, in seconds.
        duration: Length in seconds. None: to the end of the file, which is measured.
        channel: Index of the channel, from 0. None: all channels.
        tags: All other keys of a manifest, such as ``lang`` and ``speaker``.
        where: ``file:line`` that names the utterance, for messages.
        whole: Whether the row is all of its file. Found when the file is measured.
    """

    id: str
    audio: str
    text: str
    split: str = NO_SPLIT
    offset: Seconds = 0.0
    duration: Seconds | None = None
    channel: int | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    whole: bool = True

    @property
    def speaker(self) -> str | None:
        """Name of the speaker, if it is known."""
        speaker = self.tags.get("speaker")
        return None if speaker is None or speaker == "" else str(speaker)

    def plain(self, place: Callable[[str], str]) -> dict[str, Any]:
        """The row as a line of a manifest.

        Args:
            place: Path of an audio file as it is written.
        """
        line: dict[str, Any] = {"audio_filepath": place(self.audio), "duration": self.duration, "text": self.text}
        if self.offset:
            line["offset"] = self.offset
        if self.channel is not None:
            line["channel"] = self.channel
        return {**line, "id": self.id, **self.tags}


@dataclass(slots=True)
class Found:
    """Contents of a source.

    Attributes:
        rows: Utterances.
        skips: Recordings and transcripts that cannot become a row, each with a reason.
        notes: How the source was read: columns that were guessed, files that were not used.
    """

    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, name: str, reason: str, detail: str, where: str = "") -> None:
        """Leave out a recording or a transcript."""
        self.skips.append(Skip(printable(name), printable(where), reason, printable(detail)))

    def note(self, text: str) -> None:
        """Add a note, once."""
        if printable(text) not in self.notes:
            self.notes.append(printable(text))

    def skip_error(self, name: str, reason: str, error: UserError) -> None:
        """Leave out a recording whose transcript cannot be read."""
        self.skip(name, reason, f"{error.what}" + (f": {error.remedy}" if error.remedy else ""), error.where)

    def extend(self, other: "Found") -> None:
        """Add the contents of another source."""
        self.rows += other.rows
        self.skips += other.skips
        for note in other.notes:
            self.note(note)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        output: Folder of the manifests. Audio that is not in a file of its own is written below it.
        columns: Names of columns by key: ``audio``, ``text``, ``id``, …. Keys without a name are guessed.
        audio_dir: Folder that relative audio paths start at. None: the folder of the file that names them.
        segments: ``rows``: a row for each segment of a transcript with times. ``keep``: one row with all segments.
        subset: Subset of a Hugging Face dataset.
        require_text: Whether audio without a transcript is left out. Otherwise its text is empty.
        progress: Show progress bars.
    """

    output: Path = Path()
    columns: Mapping[str, str] = field(default_factory=dict)
    audio_dir: Path | None = None
    segments: str = "rows"
    subset: str | None = None
    require_text: bool = True
    progress: bool = False

    @property
    def given(self) -> set[str]:
        """Names of the options that differ from their defaults and are about the source."""
        is_given = {
            "audio_dir": self.audio_dir is not None,
            "segments": self.segments != "rows",
            "subset": self.subset is not None,
        }
        return {f"columns.{key}" for key in self.columns} | {name for name, given in is_given.items() if given}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a transcript: times in seconds, text, and the name of the speaker if it is known."""

    start: Seconds
    end: Seconds
    text: str
    speaker: str | None = None


def split_name(name: str) -> str:
    """The name of a split as `ssl-asr train` has it: ``validation`` is ``dev``. Other names are kept.

    Example:
        >>> split_name("validation"), split_name("train-clean-5")
        ('dev', 'train-clean-5')
    """
    return _SPLIT_NAMES.get(name.lower(), name) or NO_SPLIT


def located(path: str, folders: Sequence[Path]) -> Path:
    """The file of a path that is relative to one of several folders; the path in the first folder if there is none."""
    tried = [folder / path for folder in folders]
    return next(filter(is_file, tried), tried[0])


def full_path(path: str) -> str:
    """The absolute path of a file, with its folder resolved."""
    return file_key(os.fspath(path))


def name_below(path: Path, folder: Path) -> str:
    """Name of a file for an id: its path below a folder, without its suffix."""
    try:
        path = path.relative_to(folder)
    except ValueError:
        path = Path(path.name)
    return path.with_suffix("").as_posix()


def seconds_of(value: str | None, name: str) -> Seconds | None:
    """A number of seconds from text, or None if there is no text.

    Raises:
        ValueError: It is not a number of seconds from 0 to 1e9.
    """
    if value is None or not value.strip():
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e9:
        raise ValueError(f"{name} is {value!r}, expected a number of seconds from 0")
    return number
