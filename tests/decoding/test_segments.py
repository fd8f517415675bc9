"""Invariants of transcripts: words and segments in order, inside the recording, and their texts."""

import itertools
import random

import pytest

from ssl_asr.decoding.segments import MIN_WORD_S, in_order, transcript
from ssl_asr.types import Hypothesis, Segment, Token, Word, text_of


def _placed(times, end):
    return [(round(w.start, 6), round(w.end, 6)) for w in in_order([Word("w", *pair, 1.0) for pair in times], end=end)]


@pytest.mark.parametrize(
    ("times", "end", "expected"),
    [
        ([(0.0, 0.5), (0.5, 1.0)], 1.0, [(0.0, 0.5), (0.5, 1.0)]),
        # A word that ends late ends at the start of the next word.
        ([(57.16, 57.40), (57.32, 57.9)], 60.0, [(57.16, 57.32), (57.32, 57.9)]),
        # A word of no length gets a little of the next word, of the pause, or of the word before it.
        ([(1.0, 1.5), (1.5, 1.5), (1.5, 2.0)], 3.0, [(1.0, 1.5), (1.5, 1.52), (1.52, 2.0)]),
        ([(1.0, 1.5), (1.7, 1.7), (2.0, 2.5)], 3.0, [(1.0, 1.5), (1.7, 1.72), (2.0, 2.5)]),
        ([(1.0, 2.0), (2.0, 2.0)], 2.0, [(1.0, 1.98), (1.98, 2.0)]),
        # Many words at one time, also at the end of the recording.
        ([(1.0, 1.0)] * 3, 3.0, [(1.0, 1.02), (1.02, 1.04), (1.04, 1.06)]),
        ([(9.0, 9.0)] * 3, 2.0, [(1.94, 1.96), (1.96, 1.98), (1.98, 2.0)]),
        # Times before the start or after the end, and times that go back.
        ([(-1.0, 0.5), (0.5, 99.0)], 2.0, [(0.0, 0.5), (0.5, 2.0)]),
        ([(1.0, 1.5), (0.2, 0.4)], 2.0, [(1.0, 1.02), (1.02, 1.04)]),
        # Too many words for the recording.
        ([(0.0, 0.0)] * 4, 0.04, [(0.0, 0.01), (0.01, 0.02), (0.02, 0.03), (0.03, 0.04)]),
        ([], 1.0, []),
    ],
)
def test_words_are_put_in_order(times, end, expected):
    assert _placed(times, end) == expected


def test_words_with_any_times_increase_inside_the_recording():
    rng = random.Random(0)
    for _ in range(200):
        end = rng.uniform(0.5, 4)
        starts = [rng.choice([rng.uniform(-1, 5), 1.0]) for _ in range(rng.randint(1, 20))]
        tokens = (Token("a", 0.3, 0.4, 1.0),)
        words = [Word("w", at, at + rng.choice([0, 0.3, -0.5]), 1.0, tokens) for at in starts]
        placed = in_order(words, end=end)
        assert len(placed) == len(words)
        assert all(one.end <= other.start for one, other in itertools.pairwise(placed))
        assert all(word.end - word.start > min(MIN_WORD_S, end / len(words)) - 1e-9 for word in placed)
        assert placed[0].start >= 0
        assert placed[-1].end <= end + 1e-9
        assert in_order(placed, end=end) == placed
        for word in placed:
            assert all(word.start <= t.start <= t.end <= word.end for t in word.tokens)


def _words(text, start, spaced=True):
    return tuple(
        Word(one, start + i * 0.3, start + i * 0.3 + 0.3, 0.9, spaced=spaced)
        for i, one in enumerate(text.split() if spaced else text)
    )


def test_text_and_words_of_a_transcript_are_those_of_its_segments():
    segments = [
        Segment("So  be", 0.0, 1.2, 0.5, _words("So be", 0.4)),
        Segment("it.", 0.8, 2.0, 0.5),
        Segment("No no no", 1.5, 3.0, 0.5, _words("No no no", 1.5)),
    ]
    found = transcript(Hypothesis("u", "x", -0.1, [1, 2], detected="en", segments=segments), duration=3.0)
    assert found.text == "So be it. No no no" == " ".join(one.text for one in found.segments)
    assert [word.text for word in found.words] == ["So", "be", "No", "no", "no"]
    assert [word for one in found.segments for word in one.words] == found.words
    assert all(one.text == text_of(one.words) for one in found.segments if one.words)
    times = [(round(one.start, 2), round(one.end, 2)) for one in found.segments]
    assert times == [(0.4, 0.8), (0.8, 1.5), (1.5, 2.4)]
    assert (found.id, found.score, found.tokens, found.detected) == ("u", -0.1, [1, 2], "en")


def test_segments_of_unspaced_scripts_are_joined_without_spaces():
    segments = [
        Segment("你好。", 0.0, 1.0, 0.5, _words("你好", 0.0, spaced=False)),
        Segment(
            "世界", 1.0, 2.0, 0.5, tuple(Word("世界"[i], 1 + i / 2, 1.4 + i / 2, 0.9, spaced=not i) for i in range(2))
        ),
    ]
    found = transcript(Hypothesis("u", "", 0.0, segments=segments), duration=2.0)
    assert found.text == "你好世界" == text_of(found.words)
    plain = [Segment(one.text, one.start, one.end, 0.5) for one in found.segments]
    assert transcript(Hypothesis("u", "", 0.0, segments=plain), duration=2.0).text == found.text


def test_a_transcript_without_segments_keeps_its_text():
    assert transcript(Hypothesis("u", "as it is", 0.0), duration=1.0) == Hypothesis("u", "as it is", 0.0)
    words = list(_words("a b", 0.0))
    assert transcript(Hypothesis("u", "a b", 0.0, words=words), duration=0.5).words[-1].end == 0.5
