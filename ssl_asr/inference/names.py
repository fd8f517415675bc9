"""Names of recordings: short, and different for different recordings on every file system.

The name is the stem of the file. Names that are equal get what tells them apart, in this order: the folder (and the
folders above it), the suffix, the channel, the task, a number::

    a/talk.wav  b/talk.wav      a_talk  b_talk
    talk.wav  talk.flac         talk.wav  talk.flac
    talk.wav, channels 0 and 1  talk.ch0  talk.ch1

Names are equal if they differ only in case or in how Unicode composes a letter, as on macOS and Windows.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TypeVar

from ssl_asr.data.files import name_parts
from ssl_asr.data.identity import Located, file_key, recording_key
from ssl_asr.metrics.report import Prediction

Row = TypeVar("Row", bound=Located)

# Characters that a file system or UTF-8 refuses.
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]')
# Names of devices on Windows, whatever their suffix is.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}
# Most file systems allow 255 bytes, with the suffix of the format and of a file that is not complete.
_MAX_BYTES = 200


@dataclass(frozen=True, slots=True)
class _Label:
    """A name with the parts that are added so far.

    Attributes:
        folders: Folders of the file, the nearest last.
        stem, suffix: Name of the file.
        marks: Channel and task, empty if they are not given.
        depth: Number of folders in the name.
        with_suffix: Whether the suffix is in the name.
        shown: Indices of marks in the name.
        number: Number at the end, or 0.
        spaces: Whether the name may have spaces.
    """

    folders: tuple[str, ...]
    stem: str
    suffix: str
    marks: tuple[str, ...]
    spaces: bool
    depth: int = 0
    with_suffix: bool = False
    shown: tuple[int, ...] = ()
    number: int = 0

    @classmethod
    def of(cls, row: Located, marks: tuple[str, ...], *, spaces: bool) -> "_Label":
        """The label of a recording, with the stem alone."""
        path = PurePath(*name_parts(row.audio_filepath))
        return cls(path.parts[1:-1], path.stem, path.suffix, marks, spaces)

    def __str__(self) -> str:
        folders = self.folders[len(self.folders) - min(self.depth, len(self.folders)) :]
        text = "_".join([*folders, self.stem]) + (self.suffix if self.with_suffix else "")
        text = _portable(".".join([text, *(self.marks[i] for i in self.shown if self.marks[i])]))
        text = text if self.spaces else re.sub(r"\s|^;", "_", text)
        return text if self.number == 0 else f"{text}-{self.number}"

    @property
    def folded(self) -> str:
        """Equal for names that are equal on some file system."""
        return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(self)).casefold())

    def longer(self, deepest: int) -> Iterator["_Label"]:
        """The label with one more part, the preferred part first."""
        yield from (replace(self, depth=depth) for depth in range(self.depth + 1, deepest + 1))
        if not self.with_suffix:
            yield replace(self, with_suffix=True)
        for index in range(len(self.marks)):
            if index not in self.shown:
                yield replace(self, shown=(*self.shown, index))


def _portable(name: str) -> str:
    """The name without what a file system refuses, in at most 200 bytes."""
    name = _UNSAFE.sub("_", name).encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(" .") or "_"
    return f"_{name}" if name.partition(".")[0].rstrip().casefold() in _DEVICES else name


def _distinct(labels: Sequence[_Label], reserved: Collection[str]) -> list[str]:
    """Labels as text, each different. Equal labels get more parts until they differ, and numbers if none differs."""
    labels = list(labels)
    final: set[str] = set()
    while True:
        groups: dict[str, list[int]] = defaultdict(list)
        for place, label in enumerate(labels):
            groups[label.folded].append(place)
        equal = {key: places for key, places in groups.items() if len(places) > 1 and key not in final}
        if not equal:
            break
        for key, places in equal.items():
            longer = _told_apart([labels[place] for place in places])
            if longer is None:
                final.add(key)
                continue
            for place, label in zip(places, longer, strict=True):
                labels[place] = label
    return _numbered(labels, {name.casefold() for name in reserved})


def _told_apart(equal: Sequence[_Label]) -> list[_Label] | None:
    """The labels with the first part by which they are not all equal, or None if there is no such part."""
    deepest = max(len(label.folders) for label in equal)
    start = max(label.depth for label in equal)
    aligned = [replace(label, depth=start) for label in equal]
    for longer in zip(*(label.longer(deepest) for label in aligned), strict=False):
        if len({label.folded for label in longer}) > 1:
            return list(longer)
    return None


def _numbered(labels: Sequence[_Label], reserved: set[str]) -> list[str]:
    """The labels as text. The first of equal labels stays as it is, and the others get numbers."""
    used = set(reserved)
    taken = {label.folded for label in labels} | reserved
    last: dict[str, int] = {}
    names = []
    for label in labels:
        key, chosen = label.folded, label
        while chosen.folded in used or (chosen.number > 0 and chosen.folded in taken):
            last[key] = last.get(key, 1) + 1
            chosen = replace(label, number=last[key])
        used.add(chosen.folded)
        names.append(str(chosen))
    return names


def recording_names(rows: Sequence[Prediction]) -> list[str]:
    """A name for each row, without spaces. Rows of one file share a name, and rows of different files never do.

    The channel is not a part of the name: formats with such names, as CTM, have a field for the channel.
    """
    keys = [file_key(row.audio_filepath) for row in rows]
    first = dict(zip(reversed(keys), reversed(rows), strict=True))
    ordered = list(dict.fromkeys(keys))
    names = _distinct([_Label.of(first[key], (), spaces=False) for key in ordered], ())
    by_key = dict(zip(ordered, names, strict=True))
    return [by_key[key] for key in keys]


def output_names(rows: Iterable[Located], reserved: Collection[str] = ()) -> dict[tuple[object, ...], str]:
    """A file name without suffix for each recording (`recording_key`), in order of their first rows.

    Args:
        rows: Rows of any recordings.
        reserved: Names that no recording may get.
    """
    first: dict[tuple[object, ...], Located] = {}
    for row in rows:
        first.setdefault(recording_key(row), row)
    names = _distinct([_Label.of(row, _marks(row), spaces=True) for row in first.values()], reserved)
    return dict(zip(first, names, strict=True))


def _marks(row: Located) -> tuple[str, ...]:
    return "" if row.channel is None else f"ch{row.channel}", row.task or ""


def by_recording(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each recording in order of time, recordings in order of their first rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(recording_key(row), []).append(row)
    return [sorted(own, key=lambda row: (row.offset, row.duration)) for own in groups.values()]
