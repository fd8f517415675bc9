"""Transcripts as text, JSON Lines, subtitles, CTM and TextGrid."""

import json
import re

from ssl_asr.inference.subtitles import cues, render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word

WORDS = [Word("one", 0.5, 0.8, 0.9), Word("two", 1.0, 1.25, 0.5), Word('"three"', 3.0, 3.5, 0.7)]
ROW = Prediction("u1", "", 'one two "three"', -0.1, 4.0, "/talks/a.wav", words=WORDS)
LATER = Prediction("u2", "", "four", -0.2, 2.0, "/talks/a.wav", offset=3661.0, words=[Word("four", 0.25, 1.0, 0.4)])
PLAIN = Prediction("u3", "", "no times", -0.2, 2.5, "/talks/b.wav")


def test_subtitles_break_at_pauses_and_have_times_of_the_recording():
    assert render([ROW, LATER], "srt") == (
        "1\n00:00:00,500 --> 00:00:01,250\none two\n\n"
        '2\n00:00:03,000 --> 00:00:03,500\n"three"\n\n'
        "3\n01:01:01,250 --> 01:01:02,000\nfour\n"
    )
    assert render([ROW], "vtt").startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.250\none two\n\n")
    assert render([PLAIN], "srt") == "1\n00:00:00,000 --> 00:00:02,500\nno times\n"


def test_segments_are_subtitles():
    segments = [Segment("one two", 0.5, 1.5, 0.9), Segment("three", 3.0, 3.5, 0.7)]
    row = Prediction("u", "", "one two three", 0.0, 4.0, "/talks/a.wav", offset=10.0, segments=segments)
    assert "00:00:10,500 --> 00:00:11,500\none two\n" in render([row], "srt")
    assert "00:00:10,500" not in render([ROW], "srt")


def test_cues_have_at_most_84_characters_and_6_seconds():
    words = [Word("word", i * 0.3, i * 0.3 + 0.3, 1.0) for i in range(100)]
    made = cues(words)
    assert all(len(cue.text) <= 84 and cue.end - cue.start <= 6.01 for cue in made)
    assert " ".join(cue.text for cue in made) == " ".join(["word"] * 100)


def test_ctm_has_one_line_per_word():
    assert render([ROW, LATER], "ctm").splitlines() == [
        "a 1 0.50 0.30 one 0.90",
        "a 1 1.00 0.25 two 0.50",
        'a 1 3.00 0.50 "three" 0.70',
        "a 1 3661.25 0.75 four 0.40",
    ]


def test_textgrid_has_no_gaps_and_no_overlaps():
    overlapping = Prediction("u", "", "", 0.0, 2.0, "c.wav", words=[Word("a", 0.1, 0.6, 1.0), Word("b", 0.5, 0.9, 1.0)])
    for row in (ROW, overlapping, Prediction("u", "", "", 0.0, 1.0, "silent.wav")):
        text = render([row], "textgrid")
        bounds = [float(x) for x in re.findall(r"^ {12}xm\w+ = ([\d.]+)", text, flags=re.M)]
        assert bounds[0] == 0.0
        assert bounds[-1] == row.duration
        assert bounds[1:-1:2] == bounds[2::2]
        assert int(re.search(r"intervals: size = (\d+)", text)[1]) == len(bounds) // 2
    assert 'text = """three"""' in render([ROW], "textgrid")


def test_json_lines_have_words_if_they_are_timed():
    timed, plain = (json.loads(line) for line in render([ROW, PLAIN], "jsonl").splitlines())
    assert timed["words"][0] == {"text": "one", "start": 0.5, "end": 0.8, "confidence": 0.9}
    assert set(plain) == {"id", "audio_filepath", "offset", "duration", "text", "score"}
