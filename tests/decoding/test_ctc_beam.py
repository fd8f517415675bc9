"""Prefix beam search against brute force: every label sequence with the sum over all its paths."""

import itertools
import math

import pytest
import torch

from ssl_asr.decoding.ctc import collapse
from ssl_asr.decoding.ctc_beam import _step_candidates, prefix_beam_search
from ssl_asr.decoding.fusion.automata import LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate

BLANK = 0
EVERYTHING = {"blank": BLANK, "max_labels": None, "blank_collapse": None, "beam_threshold": None}


def _all_label_sequences(log_probs_FV, blank=BLANK):
    """Log-probability of each label sequence, summed over all its paths."""
    totals = {}
    frames, size = log_probs_FV.shape
    for path in itertools.product(range(size), repeat=frames):
        score = sum(float(log_probs_FV[t, v]) for t, v in enumerate(path))
        key = tuple(collapse(list(path), blank))
        totals[key] = max(totals.get(key, -math.inf), score) + math.log1p(
            math.exp(-abs(totals.get(key, -math.inf) - score))
        )
    return totals


def _log_probs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_all_label_sequences_with_the_sum_of_their_paths(seed, blank):
    log_probs = _log_probs(2, 5, 3, seed=seed)
    lengths = torch.tensor([5, 3])
    found = prefix_beam_search(
        log_probs, lengths, beam_size=64, fusion=None, n_best=64, **(EVERYTHING | {"blank": blank})
    )
    for row, length in enumerate(lengths.tolist()):
        expected = _all_label_sequences(log_probs[row, :length], blank)
        assert {tuple(f.tokens): pytest.approx(f.score, abs=1e-4) for f in found[row]} == expected
        assert [f.score for f in found[row]] == sorted((f.score for f in found[row]), reverse=True)


def test_beam_of_one_keeps_the_best_prefix_and_no_frames_give_an_empty_text():
    log_probs = _log_probs(3, 6, 4, seed=1)
    found = prefix_beam_search(log_probs, torch.tensor([6, 1, 0]), beam_size=1, fusion=None, n_best=1, **EVERYTHING)
    best = max(_all_label_sequences(log_probs[1, :1]).items(), key=lambda item: item[1])
    assert tuple(found[1][0].tokens) == best[0]
    assert found[2][0].tokens == []
    assert found[2][0].score == 0.0


def test_results_do_not_depend_on_the_rest_of_the_batch():
    log_probs = _log_probs(3, 20, 5, seed=2)
    lengths = torch.tensor([20, 11, 7])
    together = prefix_beam_search(log_probs, lengths, beam_size=4, fusion=None, n_best=3, **EVERYTHING)
    for row, length in enumerate(lengths.tolist()):
        alone = prefix_beam_search(
            log_probs[row : row + 1, :length],
            lengths[row : row + 1],
            beam_size=4,
            fusion=None,
            n_best=3,
            **EVERYTHING,
        )[0]
        assert [(f.tokens, f.frames) for f in alone] == [(f.tokens, f.frames) for f in together[row]]


def test_frames_are_where_labels_begin():
    # "a a b": the labels begin in frames 1, 4 and 6.
    path = [0, 1, 1, 0, 1, 0, 2, 2]
    log_probs = torch.full((1, 8, 3), -20.0)
    log_probs[0, torch.arange(8), torch.tensor(path)] = -1e-6
    for collapse_at in (None, 0.999):
        found = prefix_beam_search(
            log_probs,
            torch.tensor([8]),
            beam_size=4,
            fusion=None,
            n_best=1,
            **(EVERYTHING | {"blank_collapse": collapse_at}),
        )[0][0]
        assert (found.tokens, found.frames) == ([1, 1, 2], [1, 4, 6])


def test_blank_collapse_and_pruning_do_not_change_confident_results():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 60, 8, generator=generator)
    # Like the output of a trained model: most frames are almost surely blank, the rest fairly sure of a label.
    silent = torch.rand(4, 60, generator=generator) < 0.7
    logits[..., BLANK] += torch.where(silent, 20.0, -2.0)
    log_probs = logits.log_softmax(-1)
    lengths = torch.tensor([60, 41, 60, 13])
    exact = prefix_beam_search(log_probs, lengths, beam_size=16, fusion=None, n_best=1, **EVERYTHING)
    pruned = prefix_beam_search(
        log_probs,
        lengths,
        beam_size=16,
        fusion=None,
        n_best=1,
        **(EVERYTHING | {"blank_collapse": 0.999, "max_labels": 5, "beam_threshold": 20.0}),
    )
    for one, other in zip(exact, pruned, strict=True):
        assert one[0].tokens == other[0].tokens
        assert one[0].frames == other[0].frames
        assert one[0].score == pytest.approx(other[0].score, abs=0.05)


# Fusion: the labels spell "a", "b" and a space. The expected score is computed from the whole text. ----------------

LABELS = [None, None, "a", "b", " "]
SENTENCES = [text.split() for text in ("ab a", "b ab", "ab b a", "a", "ba ab")]


def _text(tokens):
    return "".join(LABELS[token] for token in tokens)


def _all_scored(log_probs_FV, fused):
    """Score of every label sequence without the unknown label, the fused score of its text included."""
    found = {k: v for k, v in _all_label_sequences(log_probs_FV).items() if 1 not in k}
    return {tokens: score + fused(tokens) for tokens, score in found.items()}


def _check(part, fused, seeds=range(3), frames=4):
    for seed in seeds:
        log_probs = _log_probs(1, frames, len(LABELS), seed=seed)
        fusion = Fusion([part], size=len(LABELS))
        found = prefix_beam_search(
            log_probs, torch.tensor([frames]), beam_size=256, fusion=fusion, n_best=256, **EVERYTHING
        )[0]
        expected = _all_scored(log_probs[0], fused)
        expected = {tokens: score for tokens, score in expected.items() if score > -math.inf}
        assert {tuple(f.tokens): pytest.approx(f.score, abs=1e-3) for f in found} == expected


def test_label_ngram_adds_the_log_probability_of_the_whole_text():
    sentences = [["▁" if c == " " else c for c in " ".join(words)] for words in SENTENCES]
    model = estimate(sentences, order=3).model

    def fused(tokens):
        return 0.7 * model.sentence_log_prob(["▁" if c == " " else c for c in _text(tokens)])

    _check(LabelNGram(model, LABELS, weight=0.7), fused)


@pytest.mark.parametrize("unknown_alike", [False, True])
@pytest.mark.parametrize("unknown_score", [-4.0, -math.inf])
def test_word_scores_sum_to_the_whole_text_whatever_was_charged_in_advance(unknown_score, unknown_alike):
    model = estimate(SENTENCES, order=2).model
    words = Words(
        LABELS,
        model=model,
        weight=0.5,
        word_score=0.3,
        unknown_score=unknown_score,
        vocabulary=model.vocabulary,
        unknown_log_prob=model.unknown_log_prob,
        unknown_alike=unknown_alike,
    )
    assert model.unknown_log_prob == pytest.approx(model.score(0, "zz")[0])

    def fused(tokens):
        text_words = _text(tokens).split()
        unknown = sum(not model.has_word(word) for word in text_words)
        price = unknown * unknown_score if unknown else 0.0
        return 0.5 * model.sentence_log_prob(text_words) + 0.3 * len(text_words) + price

    _check(words, fused)


def test_lexicon_without_language_model_allows_only_its_words():
    words = Words(
        LABELS, model=None, weight=0.0, word_score=0.0, unknown_score=-math.inf, vocabulary={"ab": 0.0, "b": 0.0}
    )
    _check(words, lambda tokens: 0.0 if set(_text(tokens).split()) <= {"ab", "b"} else -math.inf, frames=5)


def test_unfinished_prefix_is_returned_if_no_lexicon_word_can_end():
    words = Words(LABELS, model=None, weight=0.0, word_score=0.0, unknown_score=-math.inf, vocabulary={"abab": 0.0})
    log_probs = torch.full((1, 2, len(LABELS)), -30.0)
    log_probs[0, 0, 2] = log_probs[0, 1, 3] = -0.01
    fusion = Fusion([words], size=len(LABELS))
    options = EVERYTHING | {"beam_threshold": 5.0}
    found = prefix_beam_search(log_probs, torch.tensor([2]), beam_size=4, fusion=fusion, n_best=1, **options)[0][0]
    assert _text(found.tokens) == "ab"


def test_hotwords_score_only_whole_words_and_phrases():
    phrases = ["ab", "ab b"]

    def fused(tokens):
        text_words = _text(tokens).split()
        total, at = 0.0, 0
        while at < len(text_words):
            if text_words[at : at + 2] == ["ab", "b"]:
                total, at = total + 5, at + 2
            elif text_words[at] == "ab":
                total, at = total + 3, at + 1
            else:
                at += 1
        return 1.5 * total

    _check(Hotwords(LABELS, phrases, bonus=1.5), fused, frames=5)


def test_hotwords_pay_each_character_in_advance_and_take_back_what_is_not_finished():
    """As in the drawing of the module, with a bonus of 2 for each character of "ab b " and "ab "."""
    hotwords = Hotwords([None, None, " ", "a", "b"], ["ab", "ab b"], bonus=2.0)
    key, scores = hotwords.begin, []
    for label in (3, 4, 2, 4, 4):
        scores.append(float(hotwords.scores(key, [label])[0]))
        key = hotwords.advance(key, label)
    # "ab " is earned. The second "b" is on credit until a third one shows that the word is another.
    assert scores == [2.0, 2.0, 2.0, 2.0, -2.0]
    assert hotwords.end("ab") == 2.0
    assert hotwords.end("ab b") == 2.0
    assert hotwords.end("a") == -2.0


def test_one_label_may_end_a_word_and_begin_the_next():
    """Whisper's byte pairs have such labels: "b a" ends a word with a letter before the space."""
    labels = [None, None, "a", "b a", " "]
    model = estimate(SENTENCES, order=2).model
    words = Words(labels, model=model, weight=0.5, word_score=0.1, unknown_score=-3.0, vocabulary=model.vocabulary)
    log_probs = _log_probs(1, 4, 5, seed=7)
    fusion = Fusion([words], size=5)
    found = prefix_beam_search(log_probs, torch.tensor([4]), beam_size=256, fusion=fusion, n_best=256, **EVERYTHING)
    for hypothesis in found[0]:
        text_words = "".join(labels[token] for token in hypothesis.tokens).split()
        expected = 0.5 * model.sentence_log_prob(text_words) + 0.1 * len(text_words)
        expected += sum(-3.0 for word in text_words if not model.has_word(word))
        assert hypothesis.fused == pytest.approx(expected, abs=1e-3), text_words
        assert words.scores((model.begin, "a"), [3, 2, 4]) == pytest.approx(
            words.rows([(model.begin, "a")])[0, [3, 2, 4]]
        )


def test_scores_of_several_automata_add_up_with_word_pieces():
    pieces = [None, None, " a", "b", " ab"]
    model = estimate(SENTENCES, order=2).model
    words = Words(pieces, model=model, weight=0.5, word_score=0.1, unknown_score=-3.0, vocabulary=model.vocabulary)
    fusion = Fusion([words, LabelBonus(pieces, bonus=0.2), Hotwords(pieces, ["ab"], bonus=0.4)], size=5)
    log_probs = _log_probs(1, 4, 5, seed=5)
    found = prefix_beam_search(log_probs, torch.tensor([4]), beam_size=256, fusion=fusion, n_best=256, **EVERYTHING)
    for hypothesis in found[0]:
        text_words = "".join(pieces[token] for token in hypothesis.tokens).split()
        expected = 0.5 * model.sentence_log_prob(text_words) + 0.1 * len(text_words) + 0.2 * len(hypothesis.tokens)
        expected += sum(-3.0 for word in text_words if not model.has_word(word)) + 0.4 * 3 * text_words.count("ab")
        assert hypothesis.fused == pytest.approx(expected, abs=1e-3), text_words


def test_utterances_without_frames_have_one_empty_hypothesis():
    log_probs = torch.zeros(2, 3, len(LABELS))
    found = prefix_beam_search(log_probs, torch.tensor([0, 0]), beam_size=4, fusion=None, n_best=2, **EVERYTHING)
    assert [[(one.tokens, one.frames, one.acoustic, one.fused) for one in row] for row in found] == [
        [([], [], 0.0, 0.0)],
        [([], [], 0.0, 0.0)],
    ]


@pytest.mark.parametrize(("most", "labels"), [(None, 4), (5, 4), (4, 4), (3, 3), (1, 1)])
def test_the_most_likely_labels_extend_a_prefix_without_the_blank(most, labels):
    log_probs = torch.tensor([[[0.5, 0.02, 0.3, 0.08, 0.1]]]).log()
    ids, values = _step_candidates(log_probs, 0, most)
    assert ids.shape == values.shape == (1, 1, labels + 1)
    assert set(ids[..., :-1].flatten().tolist()) == set([2, 4, 3, 1][:labels])
    assert torch.equal(values[..., :-1], log_probs.gather(2, ids[..., :-1]))
    # The dummy candidate at the end is a blank that is never chosen.
    assert ids[0, 0, -1] == 0
    assert values[0, 0, -1] < -1e29
