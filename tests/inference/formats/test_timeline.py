"""Words, segments and tracks on the time line, each time worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from ssl_asr.inference.formats.timeline import (
    on_grid,
    rows_language,
    segments_of,
    shared,
    split_at_spaces,
    timed_words,
    tracks,
)
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word
from tests.inference.formats.reading import row_of

NAN = math.nan


def _times(words):
    return [(word.text, round(word.start, 6), round(word.end, 6)) for word in words]


def _row(name, *words, offset=0.0, **changes):
    return row_of([Word(*word, 1.0) for word in words], id=name, offset=offset, **changes)


def test_words_have_the_times_of_the_recording_in_order():
    row = _row("u", ("b", 2.0, 2.5), ("a", 1.0, 1.5), offset=10.0, hyp="b a")
    assert _times(timed_words(row)) == [("a", 11.0, 11.5), ("b", 12.0, 12.5)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(NAN, 2.0), (3.0, 4.0)], [(0.0, 2.0), (3.0, 4.0)]),
        ([(NAN, NAN), (3.0, 4.0)], [(0.0, 0.0), (3.0, 4.0)]),
        ([(1.0, NAN), (3.0, 4.0)], [(1.0, 1.0), (3.0, 4.0)]),
        ([(1.0, 2.0), (NAN, 4.0)], [(1.0, 2.0), (2.0, 4.0)]),
        ([(1.0, 2.0), (NAN, NAN)], [(1.0, 2.0), (2.0, 2.0)]),
        ([(1.0, 2.0), (3.0, 2.5)], [(1.0, 2.0), (3.0, 3.0)]),
        ([(1.0, math.inf), (3.0, 4.0)], [(1.0, 1.0), (3.0, 4.0)]),
    ],
)
def test_times_that_are_no_numbers_are_those_of_their_neighbors(given, expected):
    row = row_of([Word("w", *span, 1.0) for span in given], duration=9.0)
    assert [(word.start, word.end) for word in timed_words(row)] == expected


def test_text_without_words_shares_its_time_by_characters():
    row = Prediction("u", "", "abc d", 0.0, 4.0, "a.wav", offset=1.0)
    assert _times(timed_words(row)) == [("abc", 1.0, 4.0), ("d", 4.0, 5.0)]


def test_segments_without_words_end_before_the_next_one():
    segments = [Segment("ab cd", 0.0, 5.0, 0.5), Segment("efgh", 4.0, 6.0, 0.25)]
    row = Prediction("u", "", "ab cd efgh", 0.0, 6.0, "a.wav", segments=segments[::-1])
    assert _times(timed_words(row)) == [("ab", 0.0, 2.0), ("cd", 2.0, 4.0), ("efgh", 4.0, 6.0)]
    assert [word.confidence for word in timed_words(row)] == [0.5, 0.5, 0.25]
    assert [(one.text, one.start, one.end, one.words) for one in segments_of(row)] == [
        ("ab cd", 0.0, 5.0, ()),
        ("efgh", 4.0, 6.0, ()),
    ]


def test_segments_have_the_words_between_their_ends():
    words = [Word("ab", 0.0, 1.0, 1.0), Word("cd", 1.0, 2.0, 1.0), Word("e", 4.0, 5.0, 1.0)]
    segments = [Segment("ab cd", 0.0, 2.0, 0.5), Segment(" ", 2.0, 3.0, 0.5), Segment("e", 4.0, 5.0, 0.5)]
    row = row_of(words, segments=segments, offset=100.0)
    found = segments_of(row)
    assert [(one.text, one.start, one.end, one.confidence) for one in found] == [
        ("ab cd", 100.0, 102.0, 0.5),
        ("e", 104.0, 105.0, 0.5),
    ]
    assert [[word.text for word in one.words] for one in found] == [["ab", "cd"], ["e"]]
    assert found[1].words[0].start == 104.0
    assert segments_of(replace(row, segments=[Segment("another text", 0.0, 5.0, 0.5)])) == []
    assert segments_of(replace(row, segments=[Segment("abc", 0, 1, 1.0), Segment("de", 1, 5, 1.0)])) == []
    [track] = tracks([row, replace(row, id="v", offset=200.0)])
    assert track.segment_ends() == {2, 3, 5, 6}
    assert track.row_ends() == {3, 6}
    assert track.end == 205.0


@pytest.mark.parametrize(("overlap", "lanes"), [(0.0, 1), (0.19, 1), (0.21, 2)])
def test_rows_that_overlap_by_more_than_a_fifth_of_a_second_have_tracks_of_their_own(overlap, lanes):
    first, second = _row("u", ("a", 0.0, 2.0)), _row("v", ("b", 0.5, 1.0), offset=1.5 - overlap)
    third = _row("w", ("c", 0.0, 1.0), offset=8.0)
    found = tracks([third, second, first])
    assert len(found) == lanes
    assert [row.id for row in found[0].rows] == (["u", "v", "w"] if lanes == 1 else ["u", "w"])
    assert {row.id for track in found for row in track.rows} == {"u", "v", "w"}


def test_tracks_are_in_the_order_of_recordings_and_channels():
    rows = [
        _row("1", ("a", 0, 1), audio_filepath="b.wav", channel=1),
        _row("2", ("a", 0, 1), audio_filepath="a.wav", channel=0),
        _row("3", ("a", 0, 1), audio_filepath="b.wav", channel=0),
        _row("4", ("a", 0, 1), audio_filepath="b.wav"),
        _row("5", hyp="", audio_filepath="a.wav", channel=0, offset=5.0),
    ]
    assert [(one.path, one.channel) for one in tracks(rows)] == [
        ("b.wav", None),
        ("b.wav", 0),
        ("b.wav", 1),
        ("a.wav", 0),
    ]


def test_language_of_rows_is_the_first_that_is_known():
    rows = [_row("u", ("a", 0, 1)), _row("v", ("a", 0, 1), detected="nld"), _row("w", ("a", 0, 1), lang="de")]
    assert rows_language(rows) == "nl"
    assert rows_language([replace(rows[1], lang="en")]) == "en"
    assert rows_language(rows[:1]) is None
    assert rows_language([replace(rows[0], lang="no language")]) == "no language"


def test_parts_share_the_time_of_a_word_by_characters():
    word = Word("abcdef", 1.0, 7.0, 0.5, spaced=True)
    assert _times(shared(word, ["a", "bcd", "ef"])) == [("a", 1.0, 2.0), ("bcd", 2.0, 5.0), ("ef", 5.0, 7.0)]
    assert [part.spaced for part in shared(word, ["a", "b", "c"])] == [True, False, False]
    assert not shared(replace(word, spaced=False), ["a"])[0].spaced
    assert _times(shared(Word("", 1.0, 2.0, 0.5), [""])) == [("", 1.0, 2.0)]
    phrase = split_at_spaces([Word("ab c", 0.0, 3.0, 0.5, spaced=False), word])
    assert [(one.text, one.end, one.spaced) for one in phrase] == [
        ("ab", 2.0, False),
        ("c", 3.0, True),
        ("abcdef", 7.0, True),
    ]


@pytest.mark.parametrize(
    ("spans", "options", "expected"),
    [
        ([(0.124, 0.126)], {}, [(12, 13)]),
        ([(0.125, 0.135)], {}, [(13, 14)]),
        ([(-0.5, 0.1)], {}, [(0, 10)]),
        # A start that is not after the one before is a tick later.
        ([(0.1, 0.2), (0.1, 0.2), (0.1, 0.2)], {}, [(10, 11), (11, 12), (12, 20)]),
        ([(0.1, 0.1)], {"least": 5}, [(10, 15)]),
        ([(0.1, 0.1), (0.12, 0.3)], {"least": 5}, [(10, 12), (12, 30)]),
        # Within the recording: a span at its end is moved before it, and others make room.
        ([(0.5, 0.5)], {"until": 0.5}, [(49, 50)]),
        ([(0.49, 0.5), (0.5, 0.5)], {"until": 0.5}, [(48, 49), (49, 50)]),
        ([(0.4, 0.4)], {"until": 0.43, "least": 9}, [(40, 43)]),
        # Too many spans for the recording: they go on after its end.
        ([(0.01, 0.02)] * 3, {"until": 0.02}, [(1, 2), (2, 3), (3, 4)]),
        ([], {"until": 0.02}, []),
    ],
)
def test_times_on_a_grid(spans, options, expected):
    assert on_grid(spans, 100, **options) == expected


def test_text_without_words_is_as_confident_as_its_segment():
    row = Prediction("u", "", "ab cd", 0.0, 4.0, "a.wav")
    assert [word.confidence for word in timed_words(row)] == [1.0, 1.0]
    segments = [Segment("ab", 0.0, 1.0, 0.25), Segment("cd", 1.0, 2.0, 0.75)]
    assert [word.confidence for word in timed_words(replace(row, segments=segments))] == [0.25, 0.75]


def test_json_has_channels_if_there_are_several():
    one = _row("1", ("a", 0, 1), channel=1)
    for rows, channels in (([one], [None]), ([one, replace(one, channel=0)], [0, 1])):
        segments = json.loads(render(rows, "json"))["segments"]
        assert sorted((segment.get("channel") for segment in segments), key=str) == channels
