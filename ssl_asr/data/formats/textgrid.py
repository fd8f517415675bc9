"""Praat's TextGrid, in the long and the short text form, in UTF-8 or UTF-16.

Praat reads only strings in quotation marks, numbers that stand free, and flags such as ``<exists>``. All other words
are comments, and so the two forms have one grammar.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ssl_asr.data.formats.rows import Segment
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

_TOKENS = re.compile(r'"(?P<text>(?:[^"]|"")*)"|(?P<flag><\w+>)|(?<!\S)(?P<number>[-+]?\d\S*)|(?P<comment>!.*)|[^\s"]+')
# Tiers whose intervals are parts of words or single words.
_FINE = re.compile(r"\b(words?|phones?|phonemes?|phonetics?|syllables?|syll?|mau|kan|ort|segments? of words)\b", re.I)
_PHONES = re.compile(r"\b(phones?|phonemes?|phonetics?|syllables?|syll?|mau|kan)\b", re.I)
# A pause of at least this many seconds ends a segment of words, and a segment is cut if it is longer than _MOST_S.
_PAUSE_S, _MOST_S = 0.5, 30.0
# Intervals that stand for silence or noise.
_SILENT = frozenset({"", "sil", "sp", "spn", "<sil>", "<p:>", "<eps>", "#"})
_NAMED = frozenset(
    {"segments", "utterances", "utterance", "sentences", "sentence", "transcript", "transcription", "text"}
)


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier of intervals in order of time."""

    name: str
    intervals: list[Segment]


def read_textgrid(path: Path) -> list[Tier]:
    """The tiers of intervals of a file. Tiers of points are left out.

    Raises:
        ManifestError: The file is not a TextGrid in text form.
    """
    remedy = "save it in Praat as a text file"
    text = "\n".join(line for _, line in read_lines(path, error=ManifestError, remedy=remedy))
    try:
        return list(_tiers(_Tokens(text)))
    except (ValueError, OverflowError):
        raise ManifestError(str(path), "is not a whole TextGrid", remedy) from None


class _Tokens:
    """Strings, numbers and flags of a file, one after the other."""

    def __init__(self, text: str) -> None:
        self._left = (found for found in _TOKENS.finditer(text) if found.lastgroup in ("text", "number", "flag"))

    def text(self) -> str:
        """The next token, which is a string."""
        return self._next("text").replace('""', '"')

    def number(self) -> float:
        """The next token, which is a number."""
        return float(self._next("number"))

    def flag(self) -> str:
        """The next token, which is a flag."""
        return self._next("flag")

    def _next(self, kind: str) -> str:
        found = next(self._left, None)
        if found is None or found.lastgroup != kind:
            raise ValueError(kind)
        return found[kind]


def _tiers(tokens: _Tokens) -> Iterator[Tier]:
    if tokens.text() != "ooTextFile" or tokens.text() != "TextGrid":
        raise ValueError("TextGrid")
    tokens.number(), tokens.number()
    if tokens.flag() != "<exists>":
        return
    for _ in range(int(tokens.number())):
        kind, name = tokens.text(), tokens.text()
        tokens.number(), tokens.number()
        count = int(tokens.number())
        if kind == "IntervalTier":
            found = [Segment(tokens.number(), tokens.number(), tokens.text().strip()) for _ in range(count)]
            yield Tier(name, found)
        else:
            for _ in range(count):
                tokens.number(), tokens.text()


def segments_of(tiers: Sequence[Tier], chosen: str | None) -> tuple[list[Segment], str]:
    """The segments of a recording, and how they were found.

    A tier named ``segments``, ``utterances``, ``sentences``, ``transcript`` or ``text`` comes first. Otherwise tiers of
    words and phones are left out, and each other tier has one speaker. If there are only tiers of words, words become
    segments at pauses.

    Args:
        tiers: Tiers of intervals.
        chosen: Name of a tier, or None. Words or phones of a chosen tier are joined too.

    Raises:
        ValueError: There is no tier with text, or not the chosen one.
    """
    names = ", ".join(tier.name for tier in tiers) or "none"
    if chosen is not None:
        picked = [tier for tier in tiers if tier.name == chosen]
        if not picked:
            raise ValueError(f"no tier '{chosen}': its tiers of intervals are {names}")
        if _FINE.search(chosen):
            return _joined(_spoken(picked[0])), f"tier '{chosen}', joined up to pauses"
        return _spoken(picked[0]), f"tier '{chosen}'"
    named = [tier for tier in tiers if tier.name.strip().lower() in _NAMED]
    if named:
        return _spoken(named[0]), f"tier '{named[0].name}'"
    coarse = [tier for tier in tiers if _FINE.search(tier.name) is None]
    if len(coarse) == 1:
        return _spoken(coarse[0]), f"tier '{coarse[0].name}'"
    if coarse:
        found = [Segment(s.start, s.end, s.text, tier.name) for tier in coarse for s in _spoken(tier)]
        return sorted(found, key=lambda s: (s.start, s.end)), "one tier for each speaker"
    words = next((tier for tier in tiers if _PHONES.search(tier.name) is None), None)
    if words is None:
        raise ValueError(f"no tier of words: its tiers of intervals are {names}")
    return _joined(_spoken(words)), f"words of tier '{words.name}', joined up to pauses"


def _spoken(tier: Tier) -> list[Segment]:
    return [segment for segment in tier.intervals if segment.text.lower() not in _SILENT]


def _joined(words: Sequence[Segment]) -> list[Segment]:
    """Words as segments. Segments end at pauses, and long ones are cut at their longest pauses."""
    groups: list[list[Segment]] = [[words[0]]] if words else []
    for before, word in pairwise(words):
        if word.start - before.end >= _PAUSE_S:
            groups.append([])
        groups[-1].append(word)
    return [
        Segment(part[0].start, part[-1].end, " ".join(word.text for word in part))
        for group in groups
        for part in _cut(group)
    ]


def _cut(words: list[Segment]) -> Iterator[list[Segment]]:
    """Parts of at most `_MOST_S` seconds, or of one word, in order. Cuts are at the longest pauses."""
    left = [words]
    while left:
        part = left.pop()
        if len(part) == 1 or part[-1].end - part[0].start <= _MOST_S:
            yield part
            continue
        at = max(range(1, len(part)), key=lambda i: (part[i].start - part[i - 1].end, -abs(2 * i - len(part))))
        left += [part[at:], part[:at]]
