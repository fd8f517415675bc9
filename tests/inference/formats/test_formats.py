"""What each format does with text that its readers could take for something else, and with times."""

import json
import re
from itertools import pairwise

import pysubs2
import pytest
import srt

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats.ass import ass
from ssl_asr.inference.formats.cues import Cue, Timed
from ssl_asr.inference.formats.text import WORD_JOINER, broken, clean
from ssl_asr.inference.formats.timeline import on_grid
from ssl_asr.inference.subtitles import FORMATS, TIMED, render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word
from tests.inference.formats.reading import (
    read_ass,
    read_ctm,
    read_srt,
    read_textgrid,
    read_tsv,
    read_vtt,
    row_of,
)

WORDS = [Word("one", 0.5, 0.8, 0.9), Word("two", 1.0, 1.25, 0.5), Word('"three"', 3.0, 3.5, 0.7)]
ROW = Prediction("u1", "", 'one two "three"', -0.1, 4.0, "/talks/a.wav", words=WORDS)
LATER = Prediction("u2", "", "four", -0.2, 2.0, "/talks/a.wav", offset=3661.0, words=[Word("four", 0.25, 1.0, 0.4)])
PLAIN = Prediction("u3", "", "no times", -0.2, 2.5, "/talks/b.wav")


def said(*texts, **changes):
    """Words of half a second each."""
    return row_of([Word(text, 0.5 * i, 0.5 * i + 0.5, 0.9) for i, text in enumerate(texts)], **changes)


def lines(cues):
    return [line for *_, cue in cues for line in cue]


# Cues ----------------------------------------------------------------------------------------------------------


def test_srt_and_vtt_have_times_of_the_recording():
    assert render([ROW, LATER], "srt") == (
        "1\n00:00:00,500 --> 00:00:01,500\none two\n\n"
        '2\n00:00:03,000 --> 00:00:04,000\n"three"\n\n'
        "3\n01:01:01,250 --> 01:01:02,250\nfour\n"
    )
    assert render([ROW], "vtt").startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.500\none two\n\n")


@pytest.mark.parametrize("start", [0.0, 359_999.5, 360_000.0, 3_600_000.0])
def test_hours_have_as_many_digits_as_they_need(start):
    row = row_of([Word("late", 0.0, 0.5, 1.0)], offset=start, duration=5.0)
    (cue,) = srt.parse(render([row], "srt"))
    assert cue.start.total_seconds() == start
    assert read_vtt(render([row], "vtt"))[0][0] == 1000 * start
    assert re.search(r"Dialogue: 0,(\d+):(\d\d):(\d\d)\.(\d\d),", render([row], "ass"))


@pytest.mark.parametrize(
    "text",
    [
        "a\n\nb",
        "1\n00:00:01,000 --> 00:00:02,000\nx",
        "00:00:01,000 --> 00:00:02,000",
        "00:00:01.000 --> 00:00:02.000",
        "a --> b",
        "<i>a</i>",
        "a < b > c",
        "nul\x00 feed\x0c line\u2028 next\x85 para\u2029",
        "\r\n\r\n2\r\n",
        "7",
        "{\\an8}top",
        "lone \ud800 surrogate",
    ],
)
def test_text_that_looks_like_the_format_is_text(text):
    row = said(*text.split(" "), "end")
    wanted = clean(row.hyp).split()
    assert " ".join(lines(read_srt(render([row], "srt")))).split() == wanted
    assert " ".join(lines(read_vtt(render([row], "vtt")))).split() == wanted
    assert " ".join(lines(read_tsv(render([row], "tsv")))).split() == wanted
    for kind in FORMATS:
        render([row], kind).encode()


def test_vtt_escapes_markup():
    assert "R&amp;D &lt;b&gt; --&gt;" in render([said("R&D", "<b>", "-->")], "vtt")


def test_a_number_on_a_second_line_is_no_number_of_a_cue():
    """pysubs2 drops a number at the end of a cue."""
    text = render([said("x" * 40, "1234", duration=9.0)], "srt")
    (event,) = pysubs2.SSAFile.from_string(text, format_="srt")
    assert event.plaintext.replace(WORD_JOINER, "").split() == ["x" * 40, "1234"]


def test_highlighted_words_are_underlined_while_they_are_spoken():
    row = row_of([Word("a", 0.0, 0.5, 1.0), Word("<b>", 0.5, 1.0, 1.0), Word("c", 1.5, 1.75, 1.0)], duration=9.0)
    style = SubtitleStyle(highlight_words=True)
    assert [
        (cue.start.total_seconds(), cue.end.total_seconds(), cue.content)
        for cue in srt.parse(render([row], "srt", style))
    ] == [
        (0.0, 0.5, f"<u>a</u> <{WORD_JOINER}b> c"),
        (0.5, 1.0, f"a <u><{WORD_JOINER}b></u> c"),
        (1.0, 1.5, f"a <{WORD_JOINER}b> c"),
        (1.5, 1.75, f"a <{WORD_JOINER}b> <u>c</u>"),
    ]
    assert "a <u>&lt;b&gt;</u> c" in render([row], "vtt", style)
    assert len(read_vtt(render([row], "vtt", style))) == 4
    assert "<u>" not in render([row], "vtt")


def test_ass_has_the_time_of_each_word():
    row = row_of([Word("one", 0.0, 0.3, 1.0), Word("two", 0.5, 1.0, 1.0), Word("three", 1.0, 1.5, 1.0)])
    text = render([row], "ass", SubtitleStyle(max_line_width=8))
    assert "Dialogue: 0,0:00:00.00,0:00:01.50,Default,,0,0,0,,{\\k50}one {\\k50}two\\N{\\k50}three\n" in text
    plain, colored = (
        pysubs2.SSAFile.from_string(render([row], "ass", SubtitleStyle(highlight_words=highlight))).styles["Default"]
        for highlight in (False, True)
    )
    assert plain.primarycolor == plain.secondarycolor
    assert colored.primarycolor != colored.secondarycolor


def test_ass_keeps_braces_and_backslashes_as_look_alikes():
    ((_, _, shown),) = read_ass(render([said("{a}", "b\\N", "{\\an8}c")], "ass"))
    assert shown == ["❴a❵ b⧵N ❴⧵an8❵c"]


def test_ass_times_do_not_overlap_after_rounding():
    from ssl_asr.inference.formats.ass import ass

    cues = [Cue(start, start + 4, ((Timed("w", start, start + 4),),), start + 4) for start in range(1000, 1040, 4)]
    found = read_ass(ass(cues))
    assert len(found) == 10
    assert all(start < end for start, end, _ in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))


# Times -----------------------------------------------------------------------------------------------------------


def test_times_on_a_grid_have_a_length_and_do_not_overlap():
    assert on_grid([(0.5, 0.5), (0.5, 1.2), (1.1, 1.3)], 100) == [(50, 51), (51, 110), (110, 130)]
    assert on_grid([(2.0, 2.0)] * 3, 100, until=2.0) == [(197, 198), (198, 199), (199, 200)]
    assert on_grid([(0.0, 0.0)] * 3, 100, until=0.01) == [(0, 1), (1, 2), (2, 3)]
    assert on_grid([(0.1, 0.1), (3.0, 2.0)], 1000, least=20) == [(100, 120), (3000, 3020)]
    assert on_grid([(-1.0, 0.004)], 100) == [(0, 1)]
    assert on_grid([], 100) == []


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass", "tsv", "ctm", "textgrid", "json"])
def test_times_that_are_no_numbers_lose_no_word(kind):
    nan, inf = float("nan"), float("inf")
    words = [Word("a", nan, nan, nan), Word("b", 0.5, inf, 1.0), Word("c", -3.0, -2.0, 2.0), Word("d", 1.0, 0.5, 1.0)]
    text = render([row_of(words, duration=2.0)], kind)
    shown = re.sub(r"\{.*?\}|Default|Dialogue", "", text) if kind == "ass" else text
    assert all(re.search(rf"\b{word.text}\b", shown) for word in words)


# CTM -------------------------------------------------------------------------------------------------------------


def test_ctm_has_one_line_per_word():
    assert render([LATER, ROW], "ctm").splitlines() == [
        "a 1 0.50 0.30 one 0.90",
        "a 1 1.00 0.25 two 0.50",
        'a 1 3.00 0.50 "three" 0.70',
        "a 1 3661.25 0.75 four 0.40",
    ]


def test_ctm_names_channels_and_recordings():
    rows = [
        said("right", audio_filepath="two.wav", channel=1),
        said("left", audio_filepath="two.wav", channel=0),
        said("mixed", audio_filepath="my talk.wav"),
        said("first", audio_filepath="p/x.wav"),
        said("second", audio_filepath="q/x.wav"),
        said("odd", audio_filepath=";;comment.wav"),
    ]
    found = {word: (name, channel) for name, channel, _, _, word in read_ctm(render(rows, "ctm"))}
    assert (found["left"][1], found["right"][1]) == (1, 2)
    assert found["left"][0] == found["right"][0] == "two"
    assert len({name for name, _ in found.values()}) == 5


def test_ctm_parts_the_mix_of_channels_from_the_channels():
    words = [Word("one", 0.0, 1.0, 0.9), Word("two", 1.0, 2.0, 0.9)]
    rows = [row_of(words, channel=channel) for channel in (None, 0, 1)]
    lines = [(channel, word) for _, channel, _, _, word in read_ctm(render(rows, "ctm"))]
    assert lines == [(channel, word) for channel in (1, 2, "mix") for word in ("one", "two")]
    assert {channel for _, channel, *_ in read_ctm(render(rows[:1], "ctm"))} == {1}


def test_ctm_splits_phrases():
    row = row_of([Word("new york", 0.0, 0.7, 0.5), Word("\n", 0.7, 0.8, 1.0), Word("a\u3000b", 1.0, 1.2, 1.0)])
    assert [(start, end, word) for _, _, start, end, word in read_ctm(render([row], "ctm"))] == [
        (0, 30, "new"),
        (30, 70, "york"),
        (100, 110, "a"),
        (110, 120, "b"),
    ]


# TextGrid --------------------------------------------------------------------------------------------------------


def test_textgrid_sorts_and_keeps_every_word():
    words = [Word("b", 2.0, 3.0, 1.0), Word("Going", 1.0, 1.0, 1.0), Word("a", 0.0, 1.0, 1.0), Word("c", 2.5, 4.0, 1.0)]
    assert read_textgrid(render([row_of(words)], "textgrid"))["words"] == [
        (0.0, 1.0, "a"),
        (1.0, 1.02, "Going"),
        (2.0, 2.5, "b"),
        (2.5, 4.0, "c"),
    ]


def test_textgrid_has_utterances_in_the_order_of_time():
    rows = [said("later", "words", offset=3.565), said("early", "words")]
    labels = [label for *_, label in read_textgrid(render(rows, "textgrid"))["words"]]
    assert labels == ["early", "words", "later", "words"]


def test_textgrid_has_tiers_for_channels_recordings_and_overlaps():
    def tiers(*rows):
        return {name: [label for *_, label in found] for name, found in read_textgrid(render(rows, "textgrid")).items()}

    assert tiers(said("a"), said("b", offset=2.0)) == {"words": ["a", "b"], "segments": ["a", "b"]}
    by_channel = tiers(said("b", channel=1), said("a", channel=0))
    assert (by_channel["channel 1 - words"], by_channel["channel 2 - words"]) == (["a"], ["b"])
    by_name = tiers(said("a", audio_filepath="p/x.wav"), said("b", audio_filepath="q/x.wav"))
    assert sorted(words for name, words in by_name.items() if name.endswith("words")) == [["a"], ["b"]]
    overlap = tiers(said("a", "b"), said("c", "d", offset=0.25))
    assert (overlap["words"], overlap["overlap 2 - words"]) == (["a", "b"], ["c", "d"])
    # A recording beside one with channels, earlier in the alphabet, has no channel of its own.
    by_both = tiers(said("a", audio_filepath="a.wav"), *(said("b", audio_filepath="b.wav", channel=n) for n in (0, 1)))
    assert sorted(name for name in by_both if name.endswith("words")) == [
        "a - words",
        "b - channel 1 - words",
        "b - channel 2 - words",
    ]


def test_textgrid_has_segments():
    segments = [Segment("one two", 0.5, 1.5, 1.0, tuple(WORDS[:2])), Segment('"three"', 3.0, 3.9, 1.0, (WORDS[2],))]
    row = row_of(WORDS, segments=segments, duration=4.0)
    assert read_textgrid(render([row], "textgrid"))["segments"] == [(0.5, 1.5, "one two"), (3.0, 3.9, '"three"')]
    assert 'text = """three"""' in render([row], "textgrid")
    assert "xmax = 4.000" in render([row], "textgrid")


def test_unspaced_text_has_intervals_and_lines_of_its_words():
    text = "今天天气很好"
    words = [Word(one, i, i + 0.5, 0.9, spaced=False) for i, one in enumerate(text)]
    for row in (row_of(words, lang="zh"), row_of([], hyp=text, duration=6.0, lang="zh")):
        assert [label for *_, label in read_textgrid(render([row], "textgrid"))["words"]] == list(text)
        assert [word for *_, word in read_ctm(render([row], "ctm"))] == list(text)


# JSON and text -----------------------------------------------------------------------------------------------------


def test_json_has_the_keys_of_whisper():
    segments = [Segment("one two", 0.5, 1.5, 0.9, tuple(WORDS[:2])), Segment('"three"', 3.0, 3.5, 0.7)]
    row = row_of(WORDS, segments=segments, offset=10.0, duration=4.0, lang="deu")
    made = json.loads(render([row], "json"))
    assert set(made) == {"text", "segments", "language"}
    assert (made["text"], made["language"]) == ('one two "three"', "de")
    assert made["segments"][0] == {
        "id": 0,
        "start": 10.5,
        "end": 11.5,
        "text": "one two",
        "words": [
            {"word": " one", "start": 10.5, "end": 10.8, "probability": 0.9},
            {"word": " two", "start": 11.0, "end": 11.25, "probability": 0.5},
        ],
    }
    assert made["segments"][1]["words"][0]["word"] == ' "three"'
    plain = json.loads(render([PLAIN], "json"))
    assert plain["segments"] == [{"id": 0, "start": 0.0, "end": 2.5, "text": "no times"}]


def test_json_makes_segments_of_words():
    words = [Word(f"w{i}", i * 0.4, i * 0.4 + 0.4, 1.0) for i in range(200)]
    made = json.loads(render([row_of(words)], "json"))
    assert len(made["segments"]) > 10
    assert [word["word"].strip() for segment in made["segments"] for word in segment["words"]] == [
        w.text for w in words
    ]
    unspaced = [Word(one, i, i + 0.5, 0.9, spaced=False) for i, one in enumerate("今天天气很好" * 5)]
    assert json.loads(render([row_of(unspaced, lang="zh")], "json"))["text"] == "今天天气很好" * 5


def test_json_lines_have_words_if_they_are_timed():
    timed, plain = (json.loads(line) for line in render([ROW, PLAIN], "jsonl").splitlines())
    assert timed["words"][0] == {"text": "one", "start": 0.5, "end": 0.8, "confidence": 0.9}
    assert set(plain) == {"id", "audio_filepath", "offset", "duration", "text", "score"}


@pytest.mark.parametrize("odd", ["a\tb", "a\nb", "a\r\nb", "a\u2028b", "a\x85b", "a\x00b", "bytes\udce9"])
def test_each_transcript_is_one_line(odd):
    row = row_of([], hyp=odd, audio_filepath=f"/talks/{odd}.wav", duration=1.0)
    text = render([row, PLAIN], "text")
    text.encode()
    assert [line.count("\t") for line in text.splitlines()] == [1, 1]
    lines = render([row, PLAIN], "jsonl")
    lines.encode()
    first, _ = lines.splitlines()
    assert (json.loads(first)["text"], json.loads(first)["audio_filepath"]) == (odd, f"/talks/{odd}.wav")


def test_every_timed_format_is_rendered():
    assert set(TIMED) < set(FORMATS)
    for kind in FORMATS:
        assert "one" in render([ROW], kind)


# Words that are too long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a" * 25, ["a" * 10, "a" * 10, "a" * 5]),
        ("http://example.com/a", ["http://", "example.", "com/a"]),
        ("今天天气很好我们去", ["今天天气很", "好我们去"]),
        ("e\u0301" * 8, ["e\u0301" * 5, "e\u0301" * 3]),
        ("short", ["short"]),
        ("x" + "\u0301" * 15, ["x" + "\u0301" * 9, "\u0301" * 6]),
    ],
)
def test_long_words_are_broken_at_good_places(text, parts):
    assert broken(text, 10) == parts


def test_ass_cue_within_one_hundredth_lasts_one():
    assert ",0:00:00.10,0:00:00.11," in ass([Cue(100, 104, ((Timed("a", 100, 104),),), 104)])


@pytest.mark.parametrize(
    ("milliseconds", "clock"),
    [
        (0, "0:00:00.00"),
        (59_994, "0:00:59.99"),
        (60_000, "0:01:00.00"),
        (3_600_000, "1:00:00.00"),
        (7_322_340, "2:02:02.34"),
        (36_000_005, "10:00:00.01"),
    ],
)
def test_ass_clock(milliseconds, clock):
    words = (Timed("a", milliseconds, milliseconds + 1000),)
    assert f"Dialogue: 0,{clock}," in ass([Cue(milliseconds, milliseconds + 1000, (words,), milliseconds + 1000)])
