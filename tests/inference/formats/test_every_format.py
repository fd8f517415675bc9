"""Words in are words out: random words and times in every format, read back by libraries."""

import string
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats.text import WORD_JOINER, characters, clean, letters
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word
from tests.inference.formats.reading import (
    LOOK_ALIKES,
    READERS,
    check_cues,
    read_ctm,
    read_textgrid,
    row_of,
    texts_of,
)

NASTY = [
    "1", "42", "-->", "--", ">", "<i>", "</i>", "<00:00:01.000>", "&", "&amp;", "{\\an8}", "{", "}", "{x}", "\\N", "\\",
    "a\nb", "a\r\n\r\nb", "tab\tin", "nul\x00nul", "sep\u2028sep", '"', '""', '"quoted"', ";;", "#", "NOTE", "WEBVTT",
    "00:00:01,000", "00:00:01,000-->00:00:02,000", "Mr.", "the", "a", "and,", "end.", "…", "你好", "今天。", "สวัสดี",
    "한국어", "👍🏽", "e\u0301", "\ufeffbom", "x" * 42,
]  # fmt: skip
plain = st.text(string.ascii_letters + ".,'-", min_size=1, max_size=12)
whole = st.one_of(plain, st.sampled_from([text for text in NASTY if len(characters(clean(text))) == 1]))
tokens = st.one_of(plain, st.sampled_from(NASTY))
ALWAYS, SOME = st.just(True), st.integers(1, 25)
styles = st.builds(
    SubtitleStyle,
    max_line_width=st.integers(2, 60),
    max_line_count=st.integers(1, 3),
    max_cue_s=st.floats(1, 9),
    max_characters_per_s=st.floats(5, 40),
)


@st.composite
def utterances(draw, texts=tokens, spaced=ALWAYS, sizes=SOME):
    """Words in the order of time. Some have no length, some pause before them, some overlap the next one."""
    words, at = [], draw(st.floats(0, 100))
    for _ in range(draw(sizes)):
        at += draw(st.sampled_from([0.0, 0.0, 0.001, 0.3, 1.0, 7.0]))
        end = at + draw(st.sampled_from([0.0, 0.004, 0.1, 0.3, 0.5, 2.0, 12.0]))
        words.append(Word(draw(texts), at, end, draw(st.floats(0, 1)), spaced=draw(spaced)))
        at = draw(st.sampled_from([end, end, (at + end) / 2]))
    return words


def comparable(text, kind):
    text = clean(text).replace(WORD_JOINER, "")
    return text.translate(LOOK_ALIKES) if kind == "ass" else text


@settings(max_examples=40, deadline=None)
@given(utterances(texts=whole))
def test_words_in_are_words_out(words):
    row = row_of(words)
    for kind, text in texts_of([row], SubtitleStyle()).items():
        assert comparable(text, kind).split() == comparable(row.hyp, kind).split(), kind


@settings(max_examples=40, deadline=None)
@given(utterances(spaced=st.booleans()), styles)
def test_no_letter_is_lost_and_no_limit_exceeded_in_any_style(words, style):
    row = row_of(words)
    for kind, text in texts_of([row], style).items():
        assert letters(comparable(text, kind)) == letters(comparable(row.hyp, kind)), kind
    for kind, read in READERS.items():
        check_cues(read(render([row], kind, style)), style, one_line=kind == "tsv")


@settings(max_examples=30, deadline=None)
@given(utterances(texts=plain), st.randoms())
def test_words_in_any_order_are_written_in_the_order_of_time(words, random):
    shuffled = random.sample(words, len(words))
    for kind, text in texts_of([row_of(shuffled)], SubtitleStyle()).items():
        assert sorted(text.split()) == sorted(word.text for word in words), kind


@settings(max_examples=30, deadline=None)
@given(utterances(texts=plain), st.integers(1, 5))
def test_segments_without_words_keep_every_word(words, size):
    groups = [words[place : place + size] for place in range(0, len(words), size)]
    segments = [Segment(" ".join(w.text for w in own), own[0].start, own[-1].end, 1.0) for own in groups]
    row = replace(row_of(words), words=[], segments=segments)
    for kind, read in READERS.items():
        cues = read(render([row], kind))
        check_cues(cues, SubtitleStyle(), one_line=kind == "tsv")
        assert " ".join(line for *_, lines in cues for line in lines).split() == row.hyp.split()
    assert [word for *_, word in read_ctm(render([row], "ctm"))] == row.hyp.split()
    assert [label for *_, label in read_textgrid(render([row], "textgrid"))["words"]] == row.hyp.split()


@settings(max_examples=25, deadline=None)
@given(st.lists(utterances(texts=plain, sizes=st.integers(1, 6)), min_size=1, max_size=6), st.data())
def test_rows_of_several_recordings_and_channels_keep_their_words(groups, data):
    rows = []
    for number, words in enumerate(groups):
        path = data.draw(st.sampled_from(["/p/x.wav", "/q/x.wav", "/p/my talk.wav", ";;odd.wav"]))
        channel = data.draw(st.sampled_from([None, 0, 1]))
        rows.append(row_of(words, id=str(number), audio_filepath=path, channel=channel))
    wanted = sorted(word for row in rows for word in row.hyp.split())
    lines = read_ctm(render(rows, "ctm"))
    assert sorted(word for *_, word in lines) == wanted
    assert len({name for name, *_ in lines}) == len({row.audio_filepath for row in rows})
    tiers = read_textgrid(render(rows, "textgrid"))
    labels = [label for name, entries in tiers.items() if name.endswith("words") for *_, label in entries]
    assert sorted(labels) == wanted
    for kind, read in READERS.items():
        cues = read(render(rows, kind))
        assert sorted(" ".join(line for *_, lines in cues for line in lines).split()) == wanted


def test_a_silent_recording_has_an_empty_file_of_each_format():
    row = Prediction("u", "", "", 0.0, 3.0, "/talks/a.wav")
    assert {kind: read(render([row], kind)) for kind, read in READERS.items()} == {kind: [] for kind in READERS}
    assert render([row], "ctm") == ""
    assert read_textgrid(render([row], "textgrid")) == {"words": [], "segments": []}
    assert render([row], "json") == '{"text": "", "segments": [], "language": null}\n'
