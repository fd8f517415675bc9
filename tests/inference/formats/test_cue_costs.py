"""The division into cues against the cheapest of all divisions, with costs written down from its text."""

import itertools
import math

import numpy as np
import pytest

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats import reading_time
from ssl_asr.inference.formats.cues import cues_of
from ssl_asr.types import Segment, Word
from tests.inference.formats.reading import row_of

TEXTS = ["sea", "old", "men", "the", "and", "sea,", "men.", "“old.”", "wander"]


def _cut(words, place, segment_ends):
    """Cost of parting the words before and from a place."""
    if place in (0, len(words)):
        return 0
    pause = min(1.0, (words[place].start - words[place - 1].end) / 0.8)
    before, after = words[place - 1].text, words[place].text
    if before in ("men.", "“old.”"):
        return 0
    if before == "sea,":
        return 2 - pause
    if before in ("the", "and"):
        return 16 - 4 * pause
    if place in segment_ends:
        return 1
    return (5 if after == "and" else 8) - 4 * pause


def _columns(words):
    return len(" ".join(word.text for word in words))


def _line_cost(words, first, end, segment_ends, style):
    """Cost of the cheapest lines of a cue, or None if there are none."""
    if _columns(words[first:end]) <= style.max_line_width:
        return 0
    costs = []
    for lines in range(2, style.max_line_count + 1):
        for breaks in itertools.combinations(range(first + 1, end), lines - 1):
            places = [first, *breaks, end]
            widths = [_columns(words[a:b]) for a, b in itertools.pairwise(places)]
            if max(widths) <= style.max_line_width:
                slack = sum(2 * (1 - width / style.max_line_width) ** 2 for width in widths)
                costs.append(slack + sum(1 + _cut(words, place, segment_ends) / 2 for place in breaks))
    return min(costs, default=None)


def _shown(words, first, end, until, style):
    """Milliseconds at which a cue ends."""
    start, spoken = round(1000 * words[first].start), round(1000 * words[end - 1].end)
    reading = math.ceil(1000 * _columns(words[first:end]) / style.max_characters_per_s)
    wanted, latest = max(spoken, start + reading, start + 1000), start + round(1000 * style.max_cue_s)
    if end == len(words):
        return min(wanted, latest, max(spoken, until))
    following = round(1000 * words[end].start)
    latest = min(latest, max(following - 80, start + math.ceil((following - start) / 2)))
    return min(following if following - wanted < 500 else wanted, latest)


def _cue_cost(words, first, end, until, segment_ends, style):
    lines = _line_cost(words, first, end, segment_ends, style)
    if lines is None or words[end - 1].end - words[first].start > style.max_cue_s + 1e-9:
        return math.inf
    shown = _shown(words, first, end, until, style) - round(1000 * words[first].start)
    speed = 1000 * _columns(words[first:end]) / shown / style.max_characters_per_s
    short, fast = 8 * max(0, 1 - shown / 1000), 10 * min(2, max(0, speed - 1))
    pauses = sum(words[i].start - words[i - 1].end > 0.8 + 1e-9 for i in range(first + 1, end))
    return 3 + lines + short + fast + 20 * pauses + _cut(words, end, segment_ends)


def _talk(rng, count):
    """Words of random lengths after random pauses, in whole milliseconds."""
    words, at = [], round(float(rng.choice([0.0, 0.35])), 3)
    for text in rng.choice(TEXTS, size=count):
        at = round(at + float(rng.choice([0.0, 0.0, 0.0, 0.1, 0.5, 0.8, 0.801, 1.3])), 3)
        end = round(at + float(rng.choice([0.05, 0.12, 0.3, 0.45])), 3)
        words.append(Word(str(text), at, end, 0.9))
        at = end
    return words


@pytest.mark.parametrize("seed", range(12))
def test_cues_are_the_cheapest_division_of_random_words(monkeypatch, seed):
    # The division is that of cues that are shown as they are spoken.
    monkeypatch.setattr(reading_time, "SHIFT_MS", 0)
    lines = seed % 3 + 1
    style = SubtitleStyle(
        max_line_width=14, max_line_count=lines, max_cue_s=2.0, max_characters_per_s=[12.0, 9.0, 20.0][lines - 1]
    )
    rng = np.random.default_rng(seed)
    for _ in range(12):
        words = _talk(rng, 7)
        half = int(rng.integers(1, 7))
        parts = [words[:half], words[half:]]
        segments = [Segment(" ".join(w.text for w in part), part[0].start, part[-1].end, 1.0) for part in parts]
        until = round(1000 * words[-1].end) + int(rng.choice([0, 400, 9000]))
        made = cues_of([row_of(words, segments=segments, lang="en", duration=until / 1000)], style)
        cost = {
            (first, end): _cue_cost(words, first, end, until, {half, 7}, style)
            for first, end in itertools.combinations(range(8), 2)
        }
        best = min(
            sum(cost[span] for span in itertools.pairwise((0, *cuts, 7)))
            for count in range(7)
            for cuts in itertools.combinations(range(1, 7), count)
        )
        places = [0, *itertools.accumulate(len(cue.words) for cue in made)]
        assert sum(cost[span] for span in itertools.pairwise(places)) == pytest.approx(best)
        for cue, (first, end) in zip(made, itertools.pairwise(places), strict=True):
            assert cue.start == round(1000 * words[first].start)
            assert cue.end == _shown(words, first, end, until, style)
            # The lines that were chosen cost what the cheapest lines cost.
            breaks = list(itertools.accumulate(map(len, cue.lines), initial=first))[1:-1]
            slack = [2 * (1 - len(line) / 14) ** 2 for line in cue.texts] if breaks else []
            chosen = sum(slack) + sum(1 + _cut(words, place, {half, 7}) / 2 for place in breaks)
            assert chosen == pytest.approx(_line_cost(words, first, end, {half, 7}, style))


def test_words_of_a_cue_have_their_own_times_within_it():
    """The last word is spoken until 2.6 s, and the next cue begins at 2.65 s: two frames before, the cue ends."""
    words = [Word("one", 1.0, 1.4, 0.9), Word("two.", 1.5, 2.6, 0.8), Word("three", 2.65, 3.0, 0.7)]
    first, second = cues_of([row_of(words, duration=3.0)], SubtitleStyle(max_line_width=9, max_line_count=1))
    assert [(word.text, word.start, word.end, word.confidence) for word in first.words] == [
        ("one", 1000, 1400, 0.9),
        ("two.", 1500, 2570, 0.8),
    ]
    assert [(word.start, word.end) for word in second.words] == [(2650, 3000)]
    assert (first.start, first.end, second.start, second.end) == (1000, 2570, 2650, 3000)
