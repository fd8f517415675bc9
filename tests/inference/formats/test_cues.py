"""Where cues and lines end, and how long cues are shown."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats.cues import GAP_MS, cues_of, track_cues
from ssl_asr.inference.formats.text import width
from ssl_asr.inference.formats.timeline import tracks
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Segment, Word
from tests.inference.formats.reading import check_cues, read_srt, row_of

STYLE = SubtitleStyle()


def spoken(text, *, word_s=0.4, start=0.0, spaced=True, pauses=()):
    """Words of one length each. ``pauses`` maps the number of a word to the seconds before it."""
    words, at = [], start
    pauses = dict(pauses)
    for number, one in enumerate(text.split() if spaced else text):
        at += pauses.get(number, 0.0)
        words.append(Word(one, at, at + word_s, 0.9, spaced=spaced))
        at += word_s
    return words


def cues(words, style=STYLE, **changes):
    return cues_of([row_of(words, **changes)], style)


def lines(words, style=STYLE, **changes):
    return [cue.texts for cue in cues(words, style, **changes)]


def test_half_a_minute_of_speech_is_no_single_cue():
    """A part found by voice activity is one segment. Its words make the cues."""
    text = " ".join(["and then the old man went down to the sea again,"] * 10)
    words = spoken(text, word_s=0.25)
    segment = Segment(text, 0.0, words[-1].end, 1.0, tuple(words))
    for segments in ([segment], [replace(segment, words=())], []):
        made = cues(words, segments=segments)
        check_cues([(cue.start, cue.end, cue.texts) for cue in made], STYLE)
        assert " ".join(cue.text for cue in made) == text
    without_words = cues([], hyp=text, duration=30.0, segments=[replace(segment, words=())])
    check_cues([(cue.start, cue.end, cue.texts) for cue in without_words], STYLE)
    assert " ".join(cue.text for cue in without_words) == text


@pytest.mark.parametrize("lang", ["zh", "cmn_hans_cn", None])
@pytest.mark.parametrize("whole", [False, True])
def test_text_without_spaces_has_readable_cues_without_spaces(lang, whole):
    """Also if a model gives the whole text as one word."""
    text = "今天天气很好我们去公园散步然后回家吃饭晚上看电影明天早上还要上班所以早点睡觉"
    words = [Word(text, 0.0, 29.8, 0.9)] if whole else spoken(text, word_s=0.8, spaced=False)
    made = cues(words, lang=lang)
    assert len(made) >= 5
    check_cues([(cue.start, cue.end, cue.texts) for cue in made], STYLE)
    assert "".join(cue.text for cue in made) == text


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("今天的天气「非常好」，我们一起去公园散步吧。然后回家吃饭、看电影、早点睡觉！", "zh"),
        ("私はきょうとても「うれしい」のですが、ちょっとだけつかれています。それではまたあした。", "ja"),
        ("สวัสดีครับวันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะแล้วกลับบ้าน", "th"),
    ],
)
def test_no_line_begins_with_closing_punctuation_or_a_mark(text, lang):
    for size in (8, 12, 20):
        style = SubtitleStyle(max_line_width=size)
        made = cues([Word(text, 0.0, 30.0, 0.9)], style, lang=lang)
        assert "".join(cue.text for cue in made) == text
        for line in (line for cue in made for line in cue.texts):
            assert width(line) <= size
            assert line[0] not in "」，。、！ーょっ"
            assert line[-1] not in "「"
            assert not "\u0e30" <= line[0] <= "\u0e3a"
            assert not "\u0e47" <= line[0] <= "\u0e4e"


def test_korean_is_broken_at_its_spaces():
    text = "오늘은 날씨가 아주 좋아서 우리는 공원에 산책하러 갔다가 집에 돌아왔습니다"
    made = lines(spoken(text, word_s=0.5), lang="ko")
    assert " ".join(line for cue in made for line in cue).split() == text.split()


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "he looked at every page of the book and then he put it on a shelf beside the window of the room"),
        (None, "he looked at every page of the book and then he put it on a shelf beside the window of the room"),
        ("de", "sie las jede Seite von dem Buch und dann stellte sie das Buch auf ein Regal neben dem Fenster"),
        ("fr", "elle a lu chaque page de ce livre et puis elle a mis le livre sur une table dans la chambre"),
        ("es", "ella miró cada página de este libro y luego puso el libro en una mesa cerca de la ventana"),
        ("it", "lei guardava ogni pagina di questo libro e poi metteva il libro su una sedia nella stanza"),
        ("pt", "ela olhou cada página de este livro e depois colocou o livro em uma mesa perto da janela"),
        ("nl", "zij bekeek elke bladzijde van het boek en daarna zette zij het boek op een plank in de kamer"),
    ],
)
def test_no_line_ends_between_an_article_and_its_noun(lang, text):
    articles = "the a every of der das ein dem von jede auf le une la ce de chaque el una este cada il di ogni questo "
    articles += "uma o em het een van elke op in"
    for size in (30, 36, 42):
        for word_s in (0.25, 0.4):
            made = lines(spoken(text, word_s=word_s), SubtitleStyle(max_line_width=size), lang=lang)
            ends = [line.split()[-1] for cue in made for line in cue][:-1]
            assert not set(articles.split()) & set(ends), made


def test_cues_end_at_sentences_and_clauses():
    text = (
        "It was late in the evening when we came home. Nobody had seen the letter on the table, so we opened it. "
        "Inside was a key."
    )
    assert lines(spoken(text, word_s=0.3), lang="en") == [
        ["It was late in the evening", "when we came home."],
        ["Nobody had seen the letter on the table,", "so we opened it. Inside was a key."],
    ]


def test_titles_and_initials_end_no_sentence():
    text = "yesterday evening the very famous doctor Mr. Quilter and his old friend J. Smith came to see us again"
    ends = [line.split()[-1] for cue in lines(spoken(text), lang="en") for line in cue]
    assert not {"Mr.", "J."} & set(ends)


def test_no_cue_goes_on_after_a_pause_or_into_another_utterance():
    words = spoken("one two three four", pauses={2: 1.5})
    assert [cue.text for cue in cues(words)] == ["one two", "three four"]
    first, second = row_of(spoken("one two")), row_of(spoken("three four"), id="v", offset=0.9)
    assert [cue.text for cue in cues_of([second, first])] == ["one two", "three four"]


def test_segment_ends_are_good_places_to_cut():
    text = "we saw them there yesterday morning people were singing loudly outside everyone danced happily"
    words = spoken(text, word_s=0.3)
    heads = [Segment(" ".join(text.split()[:6]), 0.0, 1.8, 1.0), Segment(" ".join(text.split()[6:]), 1.8, 4.0, 1.0)]
    style = SubtitleStyle(max_line_count=1)
    assert "we saw them there yesterday morning" in [cue.text for cue in cues(words, style, segments=heads, lang="xx")]


def test_cues_are_shown_for_the_time_to_read_them():
    """34 characters at 17 a second are 2 s. They are spoken in 1 s, and the next cue begins after 2.4 or after 9 s."""
    fast = "thirty-four characters of all text"
    assert len(fast) == 34
    near, far = (cues([*spoken(fast, word_s=0.2), *spoken("next", start=start)], lang="xx") for start in (2.4, 9.0))
    assert [(cue.start, cue.end) for cue in far] == [(0, 2000), (9000, 9400)]
    assert near[0].end == 2320
    assert not near[0].is_too_fast


def test_cues_give_way_to_a_cue_of_fast_speech():
    """The next cue begins after 1.9 s. It waits until the first has been shown for its 2 s."""
    fast = "thirty-four characters of all text"
    first, second = cues([*spoken(fast, word_s=0.2), *spoken("next one", start=1.9, word_s=0.5)], lang="xx")
    assert (first.start, first.end, second.start) == (0, 2000, 2000 + GAP_MS)
    assert [(word.text, word.start) for word in second.words] == [("next", 2080), ("one", 2400)]
    assert not first.is_too_fast


def test_the_last_cue_is_not_longer_than_the_recording():
    assert cues(spoken("one"), duration=0.7)[0].end == 700
    assert cues(spoken("one"), duration=9.0)[0].end == 1000


def test_cues_of_speech_that_is_always_too_fast_are_marked():
    text = " ".join(["incomprehensibilities everywhere, unquestionably."] * 12)
    made = cues(spoken(text, word_s=0.3), lang="en")
    for cue in made:
        speed = 1000 * len(cue.text) / (cue.end - cue.start)
        assert (speed > 17) == cue.is_too_fast
    assert all(after.start - before.end == GAP_MS for before, after in pairwise(made))


def test_gaps_are_two_frames_or_more():
    made = cues(spoken(" ".join(["word"] * 100), word_s=0.3))
    assert len(made) > 3
    assert all(after.start - before.end == GAP_MS for before, after in pairwise(made))


def test_a_word_longer_than_a_line_is_broken_and_none_of_it_is_lost():
    url = "https://example.com/a/very/long/path/with-many-parts/and-no-spaces?query=1&more=2"
    made = lines([*spoken("see"), Word(url, 0.4, 3.0, 1.0), *spoken("now", start=3.0)])
    assert "".join(line for cue in made for line in cue).replace(" ", "") == f"see{url}now"
    assert max(len(line) for cue in made for line in cue) <= 42
    german = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen"
    assert "".join(line for cue in lines([Word(german, 0.0, 2.0, 1.0)]) for line in cue) == german


def test_a_word_of_ten_seconds_is_shown_for_six():
    made = cues([Word("Yes,", 1.12, 9.98, 1.0), *spoken("she did", start=10.0)])
    assert [cue.text for cue in made] == ["Yes,", "she did"]
    assert made[0].end - made[0].start == 6000


def test_parts_of_one_word_are_not_separated():
    """``don`` and ``'t`` are two words of one text without a space, as some tokenizers give them."""
    words = [Word("we", 0, 0.2, 1.0), Word("don", 0.2, 0.4, 1.0), Word("'t", 0.4, 0.5, 1.0, spaced=False)]
    words = [replace(one, start=one.start + i, end=one.end + i) for i in range(12) for one in words]
    made = lines(words, SubtitleStyle(max_line_width=20))
    assert all(not line.startswith("'t") for cue in made for line in cue)


def test_styles_set_the_limits():
    words = spoken("some words that are spoken one after the other without any end or pause " * 4, word_s=0.3)
    for style in (
        SubtitleStyle(max_line_width=20, max_line_count=1),
        SubtitleStyle(max_line_width=32, max_line_count=3, max_cue_s=4.0),
        SubtitleStyle(max_line_width=80, max_line_count=1, max_cue_s=2.5),
    ):
        read = read_srt(render([row_of(words)], "srt", style))
        check_cues(read, style)
        assert " ".join(line for *_, cue in read for line in cue).split() == [word.text for word in words]


def test_utterances_out_of_order_are_shown_in_the_order_of_time():
    rows = [
        Prediction("second", "", "later words", 0.0, 3.23, "talk.wav", offset=3.565, words=spoken("later words")),
        Prediction("first", "", "early words", 0.0, 3.065, "talk.wav", words=spoken("early words")),
    ]
    assert [(start, lines) for start, _, lines in read_srt(render(rows, "srt"))] == [
        (0, ["early words"]),
        (3565, ["later words"]),
    ]


def test_overlapping_utterances_keep_their_own_words():
    rows = [row_of(spoken("one two three")), row_of(spoken("uno dos tres"), id="v", offset=0.1)]
    for second in (rows[1], replace(rows[1], channel=1), replace(rows[1], offset=0.5)):
        assert sorted(cue.text for cue in cues_of([rows[0], second])) == ["one two three", "uno dos tres"]


def test_words_without_times_make_cues_in_proportion_to_their_characters():
    row = Prediction("u", "", "no times", 0.0, 2.5, "/talks/b.wav")
    assert render([row], "srt") == "1\n00:00:00,000 --> 00:00:02,500\nno times\n"
    long = row_of([], hyp="eight888 " * 20, duration=20.0)
    made = cues_of([long])
    check_cues([(cue.start, cue.end, cue.texts) for cue in made], STYLE)
    assert [cue.start for cue in made][:2] == [0, 1000 * len(made[0].words)]


def test_cues_of_a_track_and_segments_of_a_long_text_are_in_order():
    """Segments are made of words without any, by the cues."""
    row = row_of(spoken("one two three. " * 40))
    [track] = tracks([row])
    starts = [cue.start for cue in track_cues(track)]
    assert len(starts) > 5
    assert starts == sorted(starts)
    segments = json.loads(render([row], "json"))["segments"]
    assert [segment["start"] for segment in segments] == sorted(segment["start"] for segment in segments)
    assert " ".join(segment["text"].strip() for segment in segments) == row.hyp
