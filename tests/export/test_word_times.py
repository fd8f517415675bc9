"""Word times of two programs: which words are compared, and what agrees."""

import pytest

from ssl_asr.export.base import TimedWord
from ssl_asr.export.word_times import MOST_TIMED, TimeComparison, distances_of, timed_examples
from ssl_asr.types import Word

OURS = [Word("By", 0.0, 0.3, 1.0), Word("this", 0.3, 0.5, 1.0), Word("fire,", 0.5, 0.8, 1.0), Word("we", 1.1, 1.3, 1.0)]


def test_words_after_a_pause_are_compared_on_request():
    theirs = [TimedWord("By", 0.1), TimedWord("this", 0.3), TimedWord("fire", 0.52), TimedWord("we", 0.8)]
    assert distances_of(OURS, theirs, any_start=False) == pytest.approx([0.0, 0.02])
    assert distances_of(OURS, theirs, any_start=True) == pytest.approx([0.1, 0.0, 0.02, 0.3])


def test_words_of_one_side_are_left_out():
    theirs = [TimedWord("this", 0.3), TimedWord(",", 0.4), TimedWord("wire", 0.5), TimedWord("we", 1.1)]
    theirs.append(TimedWord("you", 29.0))
    assert distances_of(OURS, theirs, any_start=True) == pytest.approx([0.0, 0.0])
    assert distances_of(OURS, [], any_start=True) == []


@pytest.mark.parametrize(
    ("distances", "within", "agrees"),
    [([], 0, True), ([0.02] * 8 + [0.5] * 4, 8, True), ([0.0] * 4 + [0.04] * 8, 4, False), ([0.5] * 10, 0, False)],
)
def test_half_of_the_words_have_to_agree(distances, within, agrees):
    times = TimeComparison(utterances=1, limit_s=0.02, distances=distances)
    assert (times.within, times.agrees()) == (within, agrees)


def test_a_few_words_are_too_few_to_judge():
    """A single word of a weak model failed an export."""
    times = TimeComparison(utterances=1, limit_s=0.02, distances=[0.5] * 9)
    assert times.agrees()
    assert times.record()["judged"] is False


@pytest.mark.parametrize("count", [0, 1, 19, 20, 39, 40, 174])
def test_some_utterances_are_timed(count):
    chosen = timed_examples(range(count))
    assert len(chosen) == min(count, MOST_TIMED)
    assert len(set(chosen)) == len(chosen)
