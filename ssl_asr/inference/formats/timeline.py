"""The words of transcripts in the order of time, from which every format is written.

::

    rows      |u1: one two|   |u3: five|          utterances of one recording and channel, in any order
                   |u2: three four|
    tracks    |one two|       |five|              of rows that do not overlap: words of two speakers do not mix
                   |three four|
    words     one  two        five                sorted, with a positive length, none inside another

No word is left out. Words that overlap are shortened, and words without length get one, see `on_grid`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ssl_asr.data.languages import find_language
from ssl_asr.inference.formats.text import characters, clean, letters
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Seconds, Segment, Word, text_of

# Rows that overlap by less follow each other: the ends of utterances are rounded and padded.
_OVERLAP_S: Seconds = 0.2


@dataclass(frozen=True, slots=True)
class Track:
    """Utterances of one recording and channel that follow each other.

    Attributes:
        path: The recording.
        channel: Index of the channel, from 0. None if the channels were mixed.
        rows: In the order of time.
    """

    path: str
    channel: int | None
    rows: tuple[Prediction, ...]

    @property
    def end(self) -> Seconds:
        """Seconds at which the last utterance ends."""
        return max(row.offset + row.duration for row in self.rows)

    @property
    def lang(self) -> str | None:
        """Language code of the first row that has one, in its shortest form."""
        return rows_language(self.rows)

    def words(self) -> list[Word]:
        """Words with times in the recording, a row's words after those of the row before. See `timed_words`."""
        return [word for row in self.rows for word in timed_words(row)]

    def segment_ends(self) -> set[int]:
        """Number of words up to each segment's end."""
        words = [timed_words(row) for row in self.rows]
        before = accumulate(map(len, words), initial=0)
        own = zip(before, words, self.rows, strict=False)
        return {count + end for count, words, row in own for end in _ends(words, row.segments)}

    def row_ends(self) -> set[int]:
        """Number of words up to each utterance's end."""
        return set(accumulate(len(timed_words(row)) for row in self.rows))


def rows_language(rows: Iterable[Prediction]) -> str | None:
    """Language code of the first row that has one, in its shortest form."""
    codes = (row.lang or row.detected for row in rows)
    found = next((code for code in codes if code), None)
    language = find_language(found)
    return found if language is None else language.code


def tracks(rows: Sequence[Prediction]) -> list[Track]:
    """Rows by recording and channel, and by overlap. Recordings have the order of their first rows."""
    sources = list(dict.fromkeys((row.audio_filepath, row.channel) for row in rows))
    paths = list(dict.fromkeys(path for path, _ in sources))
    sources.sort(key=lambda source: (paths.index(source[0]), -1 if source[1] is None else source[1]))
    found: list[Track] = []
    for path, channel in sources:
        own = [row for row in rows if (row.audio_filepath, row.channel) == (path, channel)]
        lanes: list[list[Prediction]] = []
        for row in sorted(own, key=lambda row: row.offset):
            free = (lane for lane in lanes if _span(lane[-1])[1] - _span(row)[0] <= _OVERLAP_S)
            lane = next(free, None)
            if lane is None:
                lanes.append([row])
            else:
                lane.append(row)
        found += [Track(path, channel, tuple(lane)) for lane in lanes]
    return found


def _span(row: Prediction) -> tuple[Seconds, Seconds]:
    """First and last second with a word, or of the row if it has no word."""
    words = timed_words(row)
    if not words:
        return row.offset, row.offset
    return min(word.start for word in words), max(word.end for word in words)


def timed_words(row: Prediction) -> list[Word]:
    """Words of a transcript with times in the recording, sorted by start.

    These are the row's words, if they spell its text. Otherwise the words of its segments: a segment without words is
    split at its spaces, or into characters if its script has no spaces, and its time is shared in proportion to the
    characters. A row without segments is one segment.
    """
    words = _cleaned(row.words)
    text = letters(row.hyp)
    if words and letters(text_of(words)) == text:
        return _placed(words, row)
    segments = _in_order(row.segments) or [Segment(row.hyp, 0.0, row.duration, 1.0)]
    following = [*(segment.start for segment in segments[1:]), math.inf]
    split = [word for segment, until in zip(segments, following, strict=True) for word in _words_of(segment, until)]
    return _placed(split if letters(text_of(split)) == text or not words else words, row)


def segments_of(row: Prediction) -> list[Segment]:
    """Segments of a row with times in the recording, and with their words if the row or they have words.

    Empty unless they spell the same text as the words do.
    """
    words = timed_words(row)
    segments = [segment for segment in _in_order(row.segments) if letters(segment.text)]
    known = bool(row.words) or any(segment.words for segment in segments)
    found: list[Segment] = []
    first = 0
    for end, segment in zip(_ends(words, segments), segments, strict=False):
        start, stop = _finite(segment.start, segment.end, 0.0)
        own = tuple(words[first:end]) if known else ()
        placed = Segment(clean(segment.text), start, stop, segment.confidence, ()).later(row.offset)
        found.append(replace(placed, words=own))
        first = end
    return found


def shared(word: Word, parts: Sequence[str]) -> list[Word]:
    """A word in parts, with its time in proportion to their characters. No space is between the parts.

    Example:
        >>> [(part.text, part.end) for part in shared(Word("今天好", 0.0, 3.0, 1.0), ["今天", "好"])]
        [('今天', 2.0), ('好', 3.0)]
    """
    per_character = (word.end - word.start) / max(1, sum(len(part) for part in parts))
    found: list[Word] = []
    start = word.start
    for number, part in enumerate(parts):
        end = word.end if number == len(parts) - 1 else start + per_character * len(part)
        found.append(Word(part, start, end, word.confidence, spaced=word.spaced if number == 0 else False))
        start = end
    return found


def split_at_spaces(words: Iterable[Word]) -> list[Word]:
    """Words without spaces in them. The time of a phrase is shared by its words in proportion to their characters."""
    found: list[Word] = []
    for word in words:
        parts = word.text.split(" ")
        first, *rest = shared(word, parts) if len(parts) > 1 else [word]
        found += [first, *(replace(part, spaced=True) for part in rest)]
    return found


def on_grid(
    spans: Sequence[tuple[Seconds, Seconds]], per_s: int, *, least: int = 1, until: Seconds = 0.0
) -> list[tuple[int, int]]:
    """Times as whole ticks: ``start < end <= next start``, whatever the seconds are.

    Starts are rounded. A start that is not after the one before moves a tick later. If the last spans move past
    ``until``, all of them move a tick earlier as far as there is room. Ends are rounded, and are at least ``least``
    ticks after the start unless the next span starts earlier.

    Args:
        spans: Start and end in seconds, sorted by start.
        per_s: Ticks per second.
        least: Ticks that a span has if there is room.
        until: End of the recording in seconds, if spans should not move past it.

    Example:
        >>> on_grid([(0.5, 0.5), (0.5, 1.2), (1.1, 1.3)], 100)
        [(50, 51), (51, 110), (110, 130)]
    """
    starts: list[int] = []
    for start, _ in spans:
        tick = max(0, math.floor(start * per_s + 0.5))
        starts.append(max(tick, starts[-1] + 1) if starts else tick)
    final = math.floor(until * per_s + 0.5)
    last = final
    for place in reversed(range(len(starts))):
        last -= 1
        if last < place or starts[place] <= last:
            break
        starts[place] = last
    ends: list[int] = []
    for place, (start, (_, end)) in enumerate(zip(starts, spans, strict=True)):
        longer = min(start + least, final) if final > start else start + least
        wanted = max(math.floor(end * per_s + 0.5), longer)
        ends.append(min(wanted, starts[place + 1]) if place + 1 < len(starts) else wanted)
    return list(zip(starts, ends, strict=True))


def _in_order(segments: Iterable[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda segment: segment.start)


def _words_of(segment: Segment, until: Seconds) -> list[Word]:
    """Words of a segment, or its text in parts that end before the next segment begins."""
    if segment.words:
        return _cleaned(segment.words)
    end = max(segment.start, min(segment.end, until))
    words = _cleaned([Word(segment.text, segment.start, end, segment.confidence)])
    return [part for word in split_at_spaces(words) for part in shared(word, characters(word.text))]


def _cleaned(words: Iterable[Word]) -> list[Word]:
    """Words with texts that are safe to write. A word without text is left out, but not the space before it."""
    found: list[Word] = []
    spaced = False
    for word in words:
        spaced = spaced or word.spaced
        text = clean(word.text)
        if text:
            found.append(replace(word, text=text, spaced=spaced))
            spaced = False
    return found


def _placed(words: Iterable[Word], row: Prediction) -> list[Word]:
    """Words with times in the recording, sorted. A time that is no number is where the word before ends."""
    found: list[Word] = []
    last: Seconds = 0.0
    for word in words:
        start, last = _finite(word.start, word.end, last)
        found.append(replace(word, start=row.offset + start, end=row.offset + last))
    found.sort(key=lambda word: word.start)
    # A space is between two rows.
    return [replace(word, spaced=True) if number == 0 else word for number, word in enumerate(found)]


def _finite(start: Seconds, end: Seconds, otherwise: Seconds) -> tuple[Seconds, Seconds]:
    start = start if math.isfinite(start) else otherwise
    return start, max(start, end) if math.isfinite(end) else start


def _ends(words: Sequence[Word], segments: Iterable[Segment]) -> list[int]:
    """Number of words up to the end of each segment with text. Empty if words and segments spell different texts."""
    spelled = [letters(segment.text) for segment in _in_order(segments) if letters(segment.text)]
    if "".join(spelled) != letters(text_of(words)):
        return []
    counts: dict[int, int] = {}
    total = 0
    for number, word in enumerate(words, start=1):
        total += len(letters(word.text))
        counts[total] = number
    wanted = [sum(map(len, spelled[: place + 1])) for place in range(len(spelled))]
    return [counts[size] for size in wanted] if all(size in counts for size in wanted) else []
