"""The numbers in tables of scores, each against a value worked out by hand."""

import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from ssl_asr.data.text import get_normalizer
from ssl_asr.metrics.breakdown import Breakdown, Confusion, Group, break_down, print_breakdown
from ssl_asr.metrics.comparison import print_changes, print_comparisons
from ssl_asr.metrics.edit import Edits
from ssl_asr.metrics.report import Prediction, Score, print_samples, print_scores, score_predictions, unit_title
from ssl_asr.metrics.significance import Comparison, compare
from ssl_asr.metrics.translation import (
    LanguageScore,
    TranslationScore,
    language_scores,
    print_languages,
    print_translation,
)
from ssl_asr.types import NormalizerName
from tests.tables import cells, heads, wide_console

LOWER = get_normalizer("lower")


def _prediction(name, ref, hyp, duration=1.0, **tags):
    return Prediction(name, ref, hyp, 0.0, duration, "", tags=tags)


# 2 errors of 4 words, 1 of 4, 0 of 2. In characters: x for b and " e" are 3 of 7, " d" is 2 of 7, 0 of 3.
ROWS = [
    _prediction("u0", "a b c d", "a x c d e", speaker="ann"),
    _prediction("u1", "a b c d", "A b c", duration=4.0, speaker="bob"),
    _prediction("u2", "a b", "a b", duration=31.0, speaker="ann"),
]


def test_scores_of_three_utterances_are_those_worked_out_by_hand():
    score = score_predictions(ROWS[::-1], "lower", LOWER)
    assert score.words == Edits(sub=1, ins=1, dele=1, ref=10)
    assert score.chars.errors == 5
    assert score.chars.ref == 17
    assert (score.wer, score.sentence_errors, score.utterances) == (0.3, 2, 3)
    # One sample in 27 has u2 three times, which is 0, and one has u0 three times, which is 6 of 12. Both are more than
    # 2.5 %, so these are the bounds.
    assert (score.wer_low, score.wer_high) == (0.0, 0.5)
    console = wide_console()
    print_scores("dev", [score], console)
    assert cells(console) == [["lower", "30.00", "0.00 - 50.00", "1", "1", "1", "10", "29.41", "2 of 3"]]


def test_large_numbers_of_a_score_are_printed_as_percentages_and_with_commas():
    words, chars = Edits(sub=1234, ins=1005, dele=2001, ref=100_000), Edits(ref=400_000, sub=5000, ins=2, dele=1)
    console = wide_console()
    print_scores("dev", [Score("basic", "words", words, chars, 0.04123, 0.04356, 1717, 2620)], console)
    assert heads(console) == [
        ["normalizer", "WER %", "95 % interval", "sub", "ins", "del", "words", "CER %", "utterances wrong"]
    ]
    numbers = ["4.24", "4.12 - 4.36", "1,234", "1,005", "2,001", "100,000", "1.25", "1,717 of 2,620"]
    assert cells(console) == [["basic", *numbers]]


def test_title_of_the_units_names_both_if_scores_differ():
    def score(unit):
        return Score("n", unit, Edits(), Edits(), 0.0, 0.0, 0, 0)

    assert unit_title([score("words"), score("words")]) == "words"
    assert unit_title([score("characters")]) == "characters"
    assert unit_title([score("words"), score("characters")]) == "words and characters"
    assert unit_title([score("mixed")]) == "words and characters"


@pytest.mark.parametrize(
    ("count", "total", "shown"),
    [
        (4, 10, ["u0", "u2", "u4", "u6"]),
        (3, 10, ["u0", "u3", "u6"]),
        (1, 10, ["u0"]),
        (5, 3, ["u0", "u1", "u2"]),
        (0, 3, []),
        (4, 0, []),
    ],
)
def test_samples_are_evenly_spaced_in_order_of_id(count, total, shown):
    console = wide_console()
    rows = [_prediction(f"u{i}", "a b", "a c") for i in range(total)][::-1]
    print_samples(rows, LOWER, console, count)
    assert cells(console) == [[name, "a [b→c]"] for name in shown]


def test_breakdown_of_three_utterances_is_that_worked_out_by_hand():
    found = break_down(ROWS, LOWER, by=["speaker", "length"], confusions=9, worst=9)
    written = found.as_dict()["by"]
    assert [(row["value"], row["wer"]) for row in written["speaker"]] == [("ann", 2 / 6), ("bob", 1 / 4)]
    console = wide_console()
    print_breakdown(found, LOWER, console)
    numbers = ["WER %", "sub", "ins", "del", "units", "of", "utterances", "hours"]
    assert heads(console) == [
        ["speaker", *numbers],
        ["length", *numbers],
        ["count", "reference", "hypothesis"],
        ["id", "errors", "alignment of reference and hypothesis"],
    ]
    assert cells(console) == [
        ["ann", "33.33", "1", "1", "0", "6", "words", "2", "0.01"],  # 32 s are 0.0089 h
        ["bob", "25.00", "0", "0", "1", "4", "words", "1", "0.00"],
        ["0-2 s", "50.00", "1", "1", "0", "4", "words", "1", "0.00"],
        ["2-5 s", "25.00", "0", "0", "1", "4", "words", "1", "0.00"],
        ["30 s and more", "0.00", "0", "0", "0", "2", "words", "1", "0.01"],
        ["1", "d", "(nothing)"],
        ["1", "(nothing)", "e"],
        ["1", "b", "x"],
        ["u0", "2", "a [b→x] c d +e"],
        ["u1", "1", "a b c -d"],
    ]


def test_large_numbers_of_a_breakdown_are_printed_with_commas_and_in_hours():
    group = Group("ann", 1234, 5436.0, Edits(sub=1100, ins=2200, dele=3300, ref=44_000), "mixed")
    confusion = Confusion("sub", "a", "b", 1717)
    console = wide_console()
    print_breakdown(Breakdown(groups={"speaker": [group]}, confusions=[confusion], worst=[]), LOWER, console)
    assert cells(console) == [
        ["ann", "15.00", "1,100", "2,200", "3,300", "44,000", "mixed", "1,234", "1.51"],
        ["1,717", "a", "b"],
    ]


# Comparisons ------------------------------------------------------------------------------------------------


def test_comparison_of_two_utterances_is_that_worked_out_by_hand():
    first = [_prediction("u0", "a b", "a x"), _prediction("u1", "c d", "c d")]
    second = [_prediction("u1", "c d", "c d"), _prediction("u0", "a b", "a b")]
    found = compare(first, second, LOWER)
    assert (found.first, found.second) == (Edits(sub=1, ref=4), Edits(ref=4))
    assert (found.difference, found.first_only, found.second_only, found.utterances) == (-0.25, 0, 1, 2)
    # A sample is u0 twice (2 of 4 words better), once (1 of 4) or never: 1/4, 1/2 and 1/4 of the samples.
    assert (found.low, found.high) == (-0.5, 0.0)
    assert found.better == pytest.approx(0.75 + 0.25 / 2, abs=0.02)
    # d = -1, 0: either sign of one difference is as far from 0.
    assert found.p == 1.0
    turned = compare(second, first, LOWER)
    assert (turned.first_only, turned.second_only, turned.low, turned.high) == (1, 0, 0.0, 0.5)


def test_interval_of_a_comparison_is_that_of_the_normal_distribution():
    """Of 400 words, one in an utterance, 80 are better: 0.2 +- 1.96 sqrt(0.2 * 0.8 / 400)."""
    first = [_prediction(f"u{i:03d}", "a", "b" if i % 5 == 0 else "a") for i in range(400)]
    second = [_prediction(f"u{i:03d}", "a", "a") for i in range(400)]
    found = compare(first, second, LOWER)
    assert (found.low, found.high) == (pytest.approx(-0.2392, abs=0.004), pytest.approx(-0.1608, abs=0.004))
    score = score_predictions(first, "lower", LOWER)
    assert (score.wer_low, score.wer_high) == (pytest.approx(0.1608, abs=0.006), pytest.approx(0.2392, abs=0.006))


def test_utterances_without_words_have_no_interval():
    rows = [_prediction("u0", "", ""), _prediction("u1", "", "a")]
    found = compare(rows, rows, LOWER)
    assert np.isnan([found.low, found.high, found.better]).all()
    score = score_predictions(rows, "lower", LOWER)
    assert np.isnan([score.wer_low, score.wer_high]).all()


def test_comparisons_are_printed_as_percentages_with_signs():
    systems = Edits(sub=1000, ref=10_000), Edits(sub=765, ref=10_000)
    one = Comparison("words", *systems, -0.0512, 0.0123, 0.875, 0.03172, 1234, 5678, 9999)
    console = wide_console()
    print_comparisons("test", {"lower": one}, ["base", "tuned"], console)
    assert heads(console) == [["", "lower"]]
    assert cells(console) == [
        ["WER % of base", "10.00"],
        ["WER % of tuned", "7.65"],
        ["unit of the WER", "words"],
        ["difference", "-2.35"],
        ["95 % interval", "-5.12 to +1.23"],
        ["probability that tuned is better", "87.5 %"],
        ["p", "0.0317"],
        ["right in base only", "1,234"],
        ["right in tuned only", "5,678"],
    ]


LARGE = Edits(sub=12_345, ins=23_456, dele=34_567, ref=7_654_321)
NORMALIZERS = get_args(NormalizerName)
NAMES = ["facebook/wav2vec2-large-robust (2026-11-28/10-19-03)", "whisper-large-v3-turbo [tuned]"]


def test_no_number_and_no_name_is_cut_on_80_columns():
    console = Console(record=True, width=80)
    one = Comparison("characters", LARGE, LARGE, -1.0512, 1.0123, 0.875, 0.0000317, 12_345, 56_789, 99_999)
    print_comparisons("test", dict.fromkeys(NORMALIZERS, one), NAMES, console)
    shown = console.export_text()
    assert "…" not in shown
    assert all(re.search(rf"\b{name}\b", shown) for name in NORMALIZERS)
    for figure in ("-105.12 to +101.23", "<0.0001", "12,345", "56,789"):
        assert shown.count(figure) == len(NORMALIZERS)
    assert max(map(len, shown.splitlines())) <= 80

    score = Score("whisper_english", "mixed", LARGE, LARGE, 0.98765, 1.98765, 1_234_567, 7_654_321)
    group = Group("ann", 1_234_567, 5436.0, LARGE, "mixed")
    print_scores("test", [replace(score, normalizer=name) for name in NORMALIZERS], console)
    print_breakdown(Breakdown(groups={"speaker": [group]}, confusions=[], worst=[]), LOWER, console)
    shown = console.export_text()
    assert "…" not in shown
    assert all(re.search(rf"\b{name}\b", shown) for name in NORMALIZERS)
    assert max(map(len, shown.splitlines())) <= 80


def test_changes_are_printed_largest_first_with_both_numbers_of_errors():
    first = [
        _prediction("u0", "a b", "a b"),
        _prediction("u1", "a b c", "x y z"),
        _prediction("u2", "a b", "a x"),
        _prediction("u3", "a", "a"),
    ]
    second = [
        _prediction("u3", "a", "a"),
        _prediction("u2", "a b", "a b"),
        _prediction("u1", "a b c", "a b c"),
        _prediction("u0", "a b", "a c"),
    ]
    console = wide_console()
    print_changes(first, second, ["base", "tuned"], LOWER, 9, console)
    assert heads(console) == [["id", "errors", "base", "tuned"]]
    assert cells(console) == [
        ["u1", "3 → 0", "[a→x] [b→y] [c→z]", "a b c"],
        ["u0", "0 → 1", "a b", "a [b→c]"],
        ["u2", "1 → 0", "a [b→x]", "a b"],
    ]
    print_changes(first, second, ["base", "tuned"], LOWER, 1, console)
    assert [row[0] for row in cells(console)] == ["u1"]
    print_changes(first, first, ["base", "base"], LOWER, 9, console)
    assert console.export_text() == ""


# Translation and languages ------------------------------------------------------------------------------------


def test_translation_scores_are_printed_with_their_margins():
    console = wide_console()
    scores = [TranslationScore("BLEU", 31.456, 1.234, "nrefs:1"), TranslationScore("chrF2", 58.0, 0.0, "nrefs:2")]
    print_translation(scores, console)
    assert heads(console) == [["metric", "score", "95 % interval", "signature"]]
    assert cells(console) == [["BLEU", "31.46", "± 1.23", "nrefs:1"], ["chrF2", "58.00", "± 0.00", "nrefs:2"]]


def test_accuracy_of_languages_is_printed_in_percent():
    console = wide_console()
    print_languages([LanguageScore("nl", 2400, {"nl": 1500, "de": 900}), LanguageScore("ga", 8, {"en": 8})], console)
    assert heads(console) == [["language", "utterances", "accuracy %", "detected as"]]
    assert cells(console) == [["nl", "2,400", "62.5", "nl 1,500, de 900"], ["ga", "8", "0.0", "en 8"]]
    pairs = [("nl", "de"), ("nl", "nl"), ("nl", "nl"), ("en", "en"), ("nl", "af")]
    assert language_scores(pairs) == [
        LanguageScore("en", 1, {"en": 1}),
        LanguageScore("nl", 4, {"nl": 2, "af": 1, "de": 1}),
    ]
    assert [list(one.taken_for) for one in language_scores(pairs)] == [["en"], ["nl", "af", "de"]]
