"""What holds for the segments and words of every transcript.

Segments     |---seg---| |seg|      |-seg-|  |--seg--|       in order, without overlap
Words        w  w   w  w w w w      w w w w  w   w   w       in order, without overlap, never of no length

The text of a segment is the text of its words. The text of a transcript is the text of its segments, and its words are
the words of its segments.
"""

from collections.abc import Sequence
from dataclasses import replace

from ssl_asr.decoding.word_breaks import joined_text, space_between
from ssl_asr.types import Hypothesis, Seconds, Segment, Word, text_of

# Shortest word. Words of no length get this much of the time next to them.
MIN_WORD_S: Seconds = 0.02


def transcript(hypothesis: Hypothesis, *, duration: Seconds) -> Hypothesis:
    """The hypothesis with segments and words in order. Its text and its words are those of its segments.

    Without segments, only its words are put in order. A text with words is exactly its words.

    Args:
        hypothesis: Segments and words in the order of the text. If there are segments, the words outside them are not
            used.
        duration: Of the recording, in seconds.
    """
    if not hypothesis.segments:
        words = in_order(hypothesis.words, end=duration)
        return replace(hypothesis, words=words, text=text_of(words) if words else hypothesis.text)
    segments = _segments(hypothesis.segments, duration)
    return replace(
        hypothesis,
        text=joined_text(segment.text for segment in segments),
        segments=segments,
        words=[word for segment in segments for word in segment.words],
    )


def _segments(given: Sequence[Segment], duration: Seconds) -> list[Segment]:
    """Segments in order, with the times of their words if they have words."""
    # A segment without words takes part as one word.
    rows = [list(one.words) or [Word(one.text, one.start, one.end, one.confidence)] for one in given]
    placed = iter(in_order([word for row in rows for word in row], end=duration))
    segments: list[Segment] = []
    before = ""
    for one, row in zip(given, rows, strict=True):
        words = [next(placed) for _ in row]
        start, end = words[0].start, words[-1].end
        words[0] = replace(words[0], spaced=not before or space_between(before, words[0].text))
        text = text_of(words)
        segments.append(replace(one, text=text, start=start, end=end, words=tuple(words) if one.words else ()))
        before = text
    return segments


def in_order(words: Sequence[Word], *, end: Seconds) -> list[Word]:
    """The words with times that increase, inside the recording.

    A word starts where it started, or `MIN_WORD_S` after the start of the word before it if that is later. It ends
    where it ended, but not after the start of the next word. Each word is at least `MIN_WORD_S` long, or shorter if
    the words do not fit into the recording.

    Args:
        words: In the order of the text.
        end: Of the recording, in seconds.
    """
    if not words:
        return []
    least_s = min(MIN_WORD_S, end / len(words))
    starts: list[Seconds] = []
    for word in words:
        earliest = starts[-1] + least_s if starts else 0.0
        starts.append(max(word.start, earliest))
    latest = end
    for i in range(len(words) - 1, -1, -1):
        latest = starts[i] = max(0.0, min(starts[i], latest - least_s))
    ends = [*starts[1:], end]
    return [
        _at(word, start, min(max(word.end, start + least_s), limit))
        for word, start, limit in zip(words, starts, ends, strict=True)
    ]


def _at(word: Word, start: Seconds, end: Seconds) -> Word:
    """The word at other times. Its tokens are moved inside it."""

    def inside(at: Seconds) -> Seconds:
        return min(max(at, start), end)

    tokens = tuple(replace(token, start=inside(token.start), end=inside(token.end)) for token in word.tokens)
    return replace(word, start=start, end=end, tokens=tokens)
