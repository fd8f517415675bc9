"""Moves cues by up to half a second, so that more of them can be read where speech is fast.

Let cue ``i`` be spoken from ``o_i`` on, need ``n_i`` milliseconds to be read, and be ``gap_i`` before the next one. Its
start may move by `SHIFT_MS` at most. Two passes give the earliest and the latest start with which all cues before, and
all cues after, have their time::

    earliest(i) = min(o_i,            max(o_i - SHIFT, earliest(i-1) + n_i-1 + gap_i-1))
    latest(i)   = max(earliest(i),    min(o_i + SHIFT, latest(i+1) - gap_i - n_i))

A third pass goes from the first cue to the last. Each starts when it is spoken, or as near to that as the latest start
and the cue before leave it::

    start(i) = max(end(i-1) + gap_i-1,  min(o_i, latest(i)))
    end(i)   = min(max(given end, start(i) + n_i),  latest(i+1) - gap_i)

If the shifts can give every cue its time, every cue has it. Otherwise, no cue gets less than the smaller of what it
needs and what it would have without shifts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ssl_asr.types import Milliseconds

SHIFT_MS: Milliseconds = 500


@dataclass(frozen=True, slots=True)
class Span:
    """When a cue is shown, and how long it takes to read, in milliseconds.

    Attributes:
        start, end: When it is shown.
        need: Time to read it, at most the longest time of a cue.
    """

    start: Milliseconds
    end: Milliseconds
    need: Milliseconds

    @property
    def is_too_fast(self) -> bool:
        """Whether it is shown for less than the time to read it."""
        return self.end - self.start < self.need


def with_reading_time(
    spans: Sequence[Span], *, gap: Milliseconds, longest: Milliseconds, until: Milliseconds
) -> list[Span]:
    """The spans, moved where that gives them time to be read.

    Args:
        spans: In order, without overlap.
        gap: Time between two cues. Two spans that are nearer to each other keep their distance.
        longest: Longest time of a cue.
        until: Latest end of the last cue.
    """
    if not spans:
        return []
    gaps = [min(gap, after.start - before.end) for before, after in pairwise(spans)]
    earliest = [max(0, spans[0].start - SHIFT_MS)]
    for (before, span), space in zip(pairwise(spans), gaps, strict=True):
        earliest.append(min(span.start, max(span.start - SHIFT_MS, earliest[-1] + before.need + space)))
    # Latest end of each cue, from the last to the first.
    ends = [max(until, spans[-1].end)]
    latest: list[Milliseconds] = []
    for place in reversed(range(len(spans))):
        span = spans[place]
        latest.append(max(earliest[place], min(span.start + SHIFT_MS, ends[-1] - span.need)))
        if place:
            ends.append(latest[-1] - gaps[place - 1])
    latest.reverse()
    ends.reverse()
    moved: list[Span] = []
    for place, span in enumerate(spans):
        start = min(span.start, latest[place])
        if moved:
            start = max(start, moved[-1].end + gaps[place - 1])
        end = min(max(span.end, start + span.need), ends[place], start + longest)
        moved.append(Span(start, end, span.need))
    return moved
