"""Cues are moved where speech is fast, against a search over all shifts."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_asr.inference.formats import reading_time
from ssl_asr.inference.formats.reading_time import SHIFT_MS, Span, with_reading_time

GAP, LONGEST = 80, 6000


def moved(spans, until=None):
    return with_reading_time(spans, gap=GAP, longest=LONGEST, until=until or spans[-1].end)


def test_slow_cues_stay_where_they_are():
    spans = [Span(0, 2000, 2000), Span(2080, 3000, 500), Span(9000, 9900, 900)]
    assert moved(spans) == spans


def test_a_fast_cue_stays_longer_and_delays_the_next():
    """1,700 ms are needed and 1,400 ms are left: the next cue, which has 500 ms to spare, begins 300 ms late."""
    assert moved([Span(0, 1400, 1700), Span(1480, 2980, 1000)]) == [Span(0, 1700, 1700), Span(1780, 2980, 1000)]


def test_a_fast_cue_that_cannot_stay_longer_begins_earlier():
    """The last cue needs 1,300 ms and ends with the recording: it takes 300 ms from the cue before."""
    assert moved([Span(0, 1920, 1000), Span(2000, 3000, 1300)]) == [Span(0, 1620, 1000), Span(1700, 3000, 1300)]


def test_time_is_passed_on_from_cue_to_cue():
    """The third cue lacks 400 ms, the second has nothing to spare, the first has 400 ms: both begin earlier."""
    spans = [Span(1000, 1920, 520), Span(2000, 2920, 920), Span(3000, 3600, 1000)]
    assert moved(spans) == [Span(1000, 1520, 520), Span(1600, 2520, 920), Span(2600, 3600, 1000)]


def test_no_cue_moves_by_more_than_half_a_second():
    assert moved([Span(0, 920, 3000), Span(1000, 4000, 500)])[0] == Span(0, 920 + SHIFT_MS, 3000)
    assert moved([Span(0, 2920, 500), Span(3000, 4000, 3000)])[1] == Span(3000 - SHIFT_MS, 4000, 3000)
    assert moved([Span(200, 1000, 3000)]) == [Span(0, 1000, 3000)]


def test_two_fast_cues_do_not_take_from_each_other():
    spans = [Span(0, 920, 1500), Span(1000, 1920, 1500), Span(2000, 2920, 1500)]
    for before, after in zip(spans, moved(spans), strict=True):
        assert after.end - after.start >= before.end - before.start


def test_spans_that_are_nearer_than_the_gap_keep_their_distance():
    first, second = moved([Span(0, 30, 400), Span(45, 900, 300)])
    assert (first.start, second.start - first.end) == (0, 15)


def test_nothing_is_moved_without_cues():
    assert with_reading_time([], gap=GAP, longest=LONGEST, until=0) == []


@st.composite
def tracks(draw, unit=1):
    """Cues in order. With a large unit, all times are its multiples."""
    at, spans = 0, []
    for _ in range(draw(st.integers(1, 4))):
        at += unit * draw(st.integers(0, 4))
        end = at + unit * draw(st.integers(1, 8))
        spans.append(Span(at, end, unit * draw(st.integers(1, 9))))
        at = end
    return spans


@given(tracks(unit=97))
def test_limits_hold_and_no_cue_is_worse_off(spans):
    until = spans[-1].end + 200
    found = moved(spans, until)
    for before, after in zip(spans, found, strict=True):
        assert abs(after.start - before.start) <= SHIFT_MS
        assert 0 < after.end - after.start <= LONGEST
        assert after.end - after.start >= min(before.need, before.end - before.start)
    for (before, following), (one, two) in zip(pairwise(spans), pairwise(found), strict=True):
        assert two.start - one.end >= min(GAP, following.start - before.end)
    assert found[-1].end <= until


@given(tracks(unit=1))
def test_every_cue_has_its_time_if_any_shifts_allow_it(spans):
    """All times are small, and so are the shift and the gap here: every combination of shifts is tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_time, "SHIFT_MS", 2)
        found = with_reading_time(spans, gap=1, longest=100, until=spans[-1].end + 1)
    gaps = [min(1, after.start - before.end) for before, after in pairwise(spans)]
    starts = product(*([start for start in range(span.start - 2, span.start + 3) if start >= 0] for span in spans))
    is_possible = any(
        all(
            start + span.need + gap <= following
            for start, span, gap, following in zip(
                given, spans, [*gaps, 0], [*given[1:], spans[-1].end + 1], strict=True
            )
        )
        for given in starts
    )
    assert is_possible == (not any(span.is_too_fast for span in found))
