"""Tuning a CTC beam search: which settings are tried and chosen, and every WER against a value worked out by hand."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from ssl_asr.data.text import get_normalizer
from ssl_asr.decoding.ctc import CtcBeam
from ssl_asr.decoding.ctc_beam import CtcHypothesis
from ssl_asr.errors import ConfigError
from ssl_asr.inference.decoder_tuning import Grid, Recorder, Recording, Trials, Tuned, record, show, tune
from ssl_asr.metrics.report import Prediction
from tests.decoding.options import CTC_BEAM, FUSION
from tests.tables import cells, heads, wide_console

LABELS = [None, "a", "b", " "]
START = CtcBeam(**(FUSION | CTC_BEAM | {"beam_size": 4, "lm_weight": 0.0, "unknown_score": None, "hotword_score": 0.0}))
GRID = Grid(
    lm_weights=[1.0, 0.0],
    word_scores=[-1.0, 2.0, 0.0],
    unknown_scores=[-5.0, -1.0],
    beam_sizes=[8, 2],
    rescore_weights=[0.5, 0.25],
    rescore_word_scores=[1.0, 0.0],
)


# What is tried and chosen -----------------------------------------------------------------------------------


class _Tried:
    """Trials with a WER of 0.5, less 0.1 for each of the settings that help."""

    def __init__(self, **best):
        self.best, self.options = best, []

    def wer(self, options):
        self.options.append(options)
        return 0.5 - 0.1 * sum(getattr(options, key) == value for key, value in self.best.items())

    def rescored(self, options, pairs):
        self.options.append(options)
        return {pair: 0.3 if pair == (0.5, 0.0) else 0.4 for pair in pairs}


def test_each_step_keeps_the_best_settings_of_the_steps_before():
    trials = _Tried(lm_weight=1.0, word_score=2.0, unknown_score=-5.0, beam_size=8)
    start = replace(START, lm="lm.arpa", unknown_score=-9.0, rescore_lm="other.arpa")
    tuned = tune(trials, start, GRID, console=None)
    best = {"lm_weight": 1.0, "word_score": 2.0, "unknown_score": -5.0, "beam_size": 8}
    assert tuned.options == replace(start, **best, rescore_weight=0.5, rescore_word_score=0.0)
    assert tuned.wer == 0.3
    assert {pair: round(wer, 9) for pair, wer in tuned.weights.items()} == {
        (0.0, 0.0): 0.5,
        (0.0, -1.0): 0.5,
        (0.0, 2.0): 0.4,
        (1.0, 0.0): 0.4,
        (1.0, -1.0): 0.4,
        (1.0, 2.0): 0.3,
    }
    assert {score: round(wer, 9) for score, wer in tuned.unknown.items()} == {-1.0: 0.3, -5.0: 0.2}
    assert {size: round(wer, 9) for size, wer in tuned.beams.items()} == {2: 0.2, 8: 0.1}
    assert tuned.rescoring == {(0.25, 0.0): 0.4, (0.25, 1.0): 0.4, (0.5, 0.0): 0.3, (0.5, 1.0): 0.4}
    assert trials.options[-1] == replace(start, **best), "the search that is rescored has the best settings so far"


def test_smallest_values_are_chosen_if_all_are_equal():
    tuned = tune(_Tried(), replace(START, lexicon="words.txt", unknown_score=-9.0), GRID, console=None)
    chosen = tuned.options
    assert (chosen.lm_weight, chosen.word_score, chosen.unknown_score, chosen.beam_size) == (0.0, 0.0, -1.0, 2)
    assert (tuned.wer, tuned.rescoring) == (0.5, {})


@pytest.mark.parametrize("start", [replace(START, lm="lm.arpa"), replace(START, unknown_score=-9.0)])
def test_prices_of_unknown_words_are_tried_only_if_there_are_any(start):
    tuned = tune(_Tried(), start, GRID, console=None)
    assert tuned.unknown == {}
    assert tuned.options.unknown_score == start.unknown_score


# WERs -------------------------------------------------------------------------------------------------------


class _Letters:
    """Spells labels as they are."""

    def labels(self):
        return LABELS

    def decode(self, tokens):
        return "".join(LABELS[token] for token in tokens)


@dataclass(frozen=True, kw_only=True)
class _Fixed:
    """A search with the same n-best list for all utterances: one text, then another."""

    rescore_lm: str | None = "lm"

    def build(self, labels):
        first = CtcHypothesis([1, 3, 1], [], -1.0, 0.0)  # "a a"
        second = CtcHypothesis([2], [], -2.5, 0.0)  # "b"
        return lambda log_probs_BFV, lengths_B: [[first, second] for _ in lengths_B.tolist()]

    def rescorer(self):
        return _Scorer()


class _Scorer:
    def log_probs(self, texts):
        return [{"a a": -4.0, "b": -1.0}[text] for text in texts]


def _trials(*pairs):
    rows = [
        (torch.zeros(n + 1, len(LABELS)), Prediction(f"u{n}", ref, hyp, 0.0, 1.0, ""))
        for n, (ref, hyp) in enumerate(pairs)
    ]
    return Trials(Recording(tokenizer=_Letters(), rows=rows), get_normalizer("lower"))


def test_wers_of_a_search_are_those_worked_out_by_hand():
    trials = _trials(("A A", "b"), ("b", "b"), ("a a", ""))
    assert trials.unit == "words"
    assert trials.greedy_wer() == 4 / 5  # 2 errors, 0 and 2
    assert trials.wer(_Fixed()) == 2 / 5  # "a a": 0, 2 and 0
    # Scores of "a a" and "b": -1 - 4 w + 2 s and -2.5 - w + s. The second is better if 3 w > 1.5 + s.
    found = trials.rescored(_Fixed(), [(0.4, 0.0), (0.6, 0.0), (0.6, 0.4), (0.4, -0.4)])
    assert found == {(0.4, 0.0): 2 / 5, (0.6, 0.0): 4 / 5, (0.6, 0.4): 2 / 5, (0.4, -0.4): 4 / 5}


def test_rows_are_searched_in_batches_with_their_own_lengths():
    """With 40 utterances there are two batches, the longest first, and every utterance keeps its reference."""
    seen = []

    @dataclass(frozen=True)
    class Lengths(_Fixed):
        def build(self, labels):
            def search(log_probs_BFV, lengths_B):
                seen.append((tuple(log_probs_BFV.shape), lengths_B.tolist()))
                return [[CtcHypothesis([1] * length, [], 0.0, 0.0)] for length in lengths_B.tolist()]

            return search

    trials = _trials(*(("a" * (n + 1), "") for n in range(40)))
    assert trials.wer(Lengths()) == 0.0
    assert seen == [((32, 40, 4), list(range(40, 8, -1))), ((8, 8, 4), list(range(8, 0, -1)))]


def test_recorder_keeps_the_frames_of_each_utterance():
    log_probs = torch.randn(2, 5, 4).log_softmax(-1)
    recorder = Recorder()
    found = recorder.build(LABELS)(log_probs, torch.tensor([5, 2]))
    assert len(found) == 2
    assert [len(kept) for kept in recorder.log_probs] == [5, 2]
    assert torch.equal(recorder.log_probs[1], log_probs[1, :2])
    assert recorder.rescorer() is None
    assert math.isclose(found[1][0].score, float(log_probs[1, :2].max(-1).values.sum()), rel_tol=1e-5)


def test_only_models_with_a_ctc_layer_are_tuned():
    class Built(Exception):
        pass

    def build(labels):
        assert labels == LABELS
        raise Built

    start = SimpleNamespace(build=build)
    with pytest.raises(ConfigError, match="has no CTC layer"):
        record(SimpleNamespace(aligns=False), {}, start, run=None, console=None)
    with pytest.raises(Built):
        record(SimpleNamespace(aligns=True, tokenizer=_Letters()), {}, start, run=None, console=None)


# What is printed --------------------------------------------------------------------------------------------


def test_tables_show_every_wer_in_percent():
    options = replace(START, lm_weight=0.5, beam_size=8, unknown_score=-5.0, rescore_lm="lm", rescore_weight=0.25)
    tuned = Tuned(
        options,
        0.0417,
        {(0.0, 0.0): 0.1, (0.0, -1.5): 0.12345, (0.5, 0.0): 0.09, (0.5, -1.5): 1.0},
        {-1.0: 0.08, -5.0: 0.07},
        {2: 0.06, 8: 0.05},
        {(0.25, 0.0): 0.0417},
    )
    console = wide_console()
    show(tuned, 0.23456, "words", console)
    text = console.export_text(clear=False)
    assert "WER % on dev (words); greedy 23.46" in text
    assert "rescoring of the best 16" in text
    assert heads(console) == [
        ["lm_weight", "word_score -1.5", "word_score 0"],
        ["-1", "-5"],
        ["2", "8"],
        ["rescore_weight", "rescore_word_score 0"],
    ]
    green = [line for line in console.export_text(clear=False, styles=True).splitlines() if "\x1b[1;32m" in line]
    assert cells(console) == [
        ["0", "12.35", "10.00"],
        ["0.5", "100.00", "9.00"],
        ["8.00", "7.00"],
        ["6.00", "5.00"],
        ["0.25", "4.17"],
    ]
    chosen = [line.split("\x1b[1;32m")[1].split("\x1b")[0] for line in green]
    assert chosen == ["9.00", "7.00", "5.00", "4.17"]
