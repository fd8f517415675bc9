"""Breakdown of errors, and significance of differences between two systems."""

import math
from itertools import product
from operator import mul

import numpy as np
import pytest
from rich.console import Console

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.breakdown import break_down, by_key, frequent_errors, length_bin, print_breakdown, worst_utterances
from ssl_asr.metrics.report import Prediction
from ssl_asr.metrics.significance import compare, shown_p, sign_flip

LOWER = get_normalizer("lower")


def _prediction(i, ref, hyp, duration=1.0, lang=None, **tags):
    return Prediction(f"u{i}", ref, hyp, 0.0, duration, "", lang=lang, tags=tags)


ROWS = [
    _prediction(0, "a b c", "a x c", speaker="ann", duration=1.0),
    _prediction(1, "a b", "A X", speaker="bob", duration=3.0, lang="en"),
    _prediction(2, "b b d", "b d d", speaker="ann", duration=40.0),
    _prediction(3, "e", "e f", duration=12.0),
]


def test_groups_cover_all_utterances():
    groups = by_key(ROWS, "speaker", LOWER)
    assert [(g.value, g.utterances, g.words.errors, g.words.ref) for g in groups] == [
        ("(none)", 1, 1, 1),
        ("ann", 2, 2, 6),
        ("bob", 1, 1, 2),
    ]
    assert [g.value for g in by_key(ROWS, "lang", LOWER)] == ["(none)", "en"]
    lengths = by_key(ROWS, "length", LOWER)
    assert [g.value for g in lengths] == ["0-2 s", "2-5 s", "10-20 s", "30 s and more"]
    for key in ("speaker", "lang", "length"):
        assert sum(g.duration for g in by_key(ROWS, key, LOWER)) == 56.0


def test_length_bins_are_contiguous():
    assert [length_bin(s) for s in (0.0, 4.99, 5.0, 29.99, 30.0)] == [
        "0-2 s",
        "2-5 s",
        "5-10 s",
        "20-30 s",
        "30 s and more",
    ]


def test_unknown_tag_error_lists_known_tags():
    with pytest.raises(ConfigError, match="lang, length, speaker"):
        by_key(ROWS, "speakr", LOWER)


def test_most_frequent_errors_come_first():
    found = frequent_errors(ROWS, LOWER, 10)
    assert (found[0].operation, found[0].ref, found[0].hyp, found[0].count) == ("sub", "b", "x", 2)
    assert sum(one.count for one in found) == 4
    assert len(frequent_errors(ROWS, LOWER, 1)) == 1


def test_worst_utterances_have_errors_and_are_sorted():
    rows = [*ROWS, _prediction(4, "a b c d", "x y", speaker="eve"), _prediction(5, "right", "right")]
    assert [row.id for row in worst_utterances(rows, LOWER, 3)] == ["u4", "u0", "u1"]
    assert "u5" not in [row.id for row in worst_utterances(rows, LOWER, 99)]


def test_tables_show_deleted_and_inserted_words():
    console = Console(record=True, width=120)
    print_breakdown(break_down(ROWS, LOWER, by=["speaker"], confusions=9, worst=9), LOWER, console)
    text = console.export_text()
    for part in ("ann", "33.33", "(nothing)", "[b→x]", "+f"):
        assert part in text, text


# Comparisons ------------------------------------------------------------------------------------------------


def _system(seed, error_rate, count=300):
    """Predictions with equal references for all seeds, and wrong words at `error_rate`."""
    refs, errors = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for i in range(count):
        ref = [f"w{w}" for w in refs.integers(0, 50, refs.integers(3, 12))]
        hyp = ["wrong" if errors.random() < error_rate else word for word in ref]
        rows.append(_prediction(i, " ".join(ref), " ".join(hyp)))
    return rows


def test_better_system_is_significant_and_equal_system_is_not():
    base, better, equal = _system(1, 0.2), _system(2, 0.1), _system(3, 0.2)
    found = compare(base, better, LOWER)
    assert found.difference < 0
    assert found.high < 0
    assert found.better > 0.999
    assert found.p < 0.001
    found = compare(base, equal, LOWER)
    assert found.low < 0 < found.high
    assert found.p > 0.05
    turned = compare(better, base, LOWER)
    assert turned.difference == -compare(base, better, LOWER).difference
    assert turned.first_only == compare(base, better, LOWER).second_only


def test_system_compared_with_itself_has_no_difference():
    found = compare(ROWS, ROWS[::-1], LOWER)
    assert (found.difference, found.low, found.high, found.better, found.p) == (0.0, 0.0, 0.0, 0.5, 1.0)


def test_p_value_is_the_share_of_all_signs_that_are_as_extreme():
    draw = np.random.default_rng(0)
    for _ in range(100):
        differences = draw.integers(-4, 5, draw.integers(1, 11)).tolist()
        sizes = [abs(one) for one in differences]
        sums = [abs(sum(map(mul, sizes, signs))) for signs in product((-1, 1), repeat=len(sizes))]
        extreme = sum(one >= abs(sum(differences)) for one in sums)
        assert sign_flip(differences) == extreme / len(sums), differences


def test_p_value_of_few_utterances_is_no_smaller_than_the_signs_allow():
    """The normal distribution has a standard deviation of 0 here, and a p-value of 0."""
    assert sign_flip([2, 2, 2]) == 2 / 2**3
    assert sign_flip([-3] * 11 + [0]) == 2 / 2**11
    assert shown_p(sign_flip([-3] * 11 + [0])) == "0.0010"
    assert sign_flip([0, 0]) == sign_flip([]) == sign_flip([1, -1]) == 1.0


def test_p_value_of_many_utterances_is_that_of_the_normal_distribution():
    differences = np.random.default_rng(1).integers(-3, 4, 3000) + (np.arange(3000) % 20 == 0)
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert sign_flip(differences.tolist()) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)
    assert shown_p(sign_flip([1] * 5000)) == "<0.0001"


def test_false_positive_rate_matches_significance_level():
    draw = np.random.default_rng(5)
    alarms = sum(sign_flip(draw.integers(-1, 2, 200).tolist()) < 0.05 for _ in range(400))
    assert 6 <= alarms <= 36, "5 % of 400, within three standard deviations"


@pytest.mark.parametrize("other", [ROWS[:3], [*ROWS[:3], _prediction(3, "changed", "e f")], []])
def test_different_utterances_or_references_are_refused(other):
    with pytest.raises(ManifestError, match="same manifest"):
        compare(ROWS, other, LOWER)
