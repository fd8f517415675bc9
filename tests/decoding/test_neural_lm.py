"""Causal language models against a plain loop over tokens, and searches with them against exhaustive search."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.ctc_beam import prefix_beam_search
from ssl_asr.decoding.fusion.options import FusionOptions
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.language_models import read_language_model
from ssl_asr.decoding.neural_lm import LabelNeural, NeuralLM
from ssl_asr.decoding.rescoring import Rescorer, Rescoring
from ssl_asr.decoding.step_model import Constraints
from ssl_asr.errors import LanguageModelError
from tests import toys
from tests.decoding.options import FUSION
from tests.decoding.test_ctc_beam import EVERYTHING, LABELS, _all_scored, _log_probs, _text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.save_language_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def model(folder):
    return NeuralLM.load(str(folder))


@pytest.fixture(scope="module")
def by_hand(folder):
    """Log-probability of a text and its end, with one forward pass per token."""
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(text, *, ended=True):
        tokens = [258, *tokenizer.encode(text), *([258] if ended else [])]
        total = 0.0
        with torch.no_grad():
            for at in range(1, len(tokens)):
                logits = network(torch.tensor([tokens[:at]])).logits[0, -1]
                total += float(logits.double().log_softmax(-1)[tokens[at]])
        return total

    return score


def test_a_model_is_loaded_without_output(folder, capfd):
    NeuralLM.load(str(folder))
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_word_scores_sum_to_the_score_of_the_text(model, by_hand):
    for text in ("ab b a", "b", "abba ab bb"):
        state, total = model.begin, 0.0
        for word in text.split():
            log_prob, state = model.score(state, word)
            total += log_prob
        assert total == pytest.approx(by_hand(text, ended=False), abs=1e-4)
        assert total + model.end(state) == pytest.approx(by_hand(text), abs=1e-4)
    assert model.text_log_probs(["ab b a", "", "b"]) == pytest.approx(
        [by_hand(t) for t in ("ab b a", "", "b")], abs=1e-4
    )


def test_prefetched_scores_equal_single_scores(folder):
    together, alone = NeuralLM.load(str(folder)), NeuralLM.load(str(folder))
    state = together.score(together.begin, "abab")[1]
    pairs = [(together.begin, "b"), (state, "a"), (state, "bbbbbb"), (together.begin, "ab")]
    together.prefetch(pairs)
    for one in pairs:
        assert together.score(*one)[0] == pytest.approx(alone.score(*one)[0], abs=1e-5)
    together.prefetch_rows([state, together.begin])
    torch.testing.assert_close(together.row(state), alone.row(state), atol=1e-5, rtol=1e-5)


def test_texts_longer_than_the_context_are_scored_on_their_last_tokens(model, by_hand):
    half = "a" * 15
    whole = model.text_log_probs([half + "b" * 16 + "a" * 40])[0]
    assert math.isfinite(whole)
    # The first half of the context, 16 tokens, fits as it is.
    assert whole < by_hand(half, ended=False)
    state = (model.start_id, *[5] * 100)
    assert math.isfinite(model.score(state, "ab")[0])
    assert model.score(model.begin, half + "b" * 16 + "a" * 39)[0] > whole, "a word may also be longer than the context"
    torch.testing.assert_close(model.row(state), model.row((model.start_id, *[5] * 15)))


@pytest.mark.parametrize("unknown_score", [-3.0, -math.inf])
@pytest.mark.parametrize("lexicon", [None, ["ab", "b"]])
def test_ctc_beam_with_word_scores_equals_exhaustive_search(model, by_hand, lexicon, unknown_score):
    vocabulary = None if lexicon is None else dict.fromkeys(lexicon, 0.0)
    words = Words(LABELS, model=model, weight=0.5, word_score=0.3, unknown_score=unknown_score, vocabulary=vocabulary)

    def fused(tokens):
        said = _text(tokens).split()
        unknown = 0 if lexicon is None else sum(word not in lexicon for word in said)
        return 0.5 * by_hand(" ".join(said)) + 0.3 * len(said) + (unknown * unknown_score if unknown else 0.0)

    log_probs = _log_probs(1, 4, len(LABELS), seed=3)
    found = prefix_beam_search(
        log_probs, torch.tensor([4]), beam_size=256, fusion=Fusion([words], size=len(LABELS)), n_best=256, **EVERYTHING
    )[0]
    expected = {k: v for k, v in _all_scored(log_probs[0], fused).items() if v > -math.inf}
    assert {tuple(f.tokens): pytest.approx(f.score, abs=1e-3) for f in found} == expected


def test_ctc_beam_with_label_scores_equals_exhaustive_search(model, folder):
    part = LabelNeural(model, LABELS, weight=0.6)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = dict(
        zip(LABELS[2:], AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["a", "b", "Ġ"]), strict=True)
    )

    def fused(tokens):
        read = torch.tensor([[258, *(ids[LABELS[token]] for token in tokens), 258]])
        with torch.no_grad():
            log_probs = network(read).logits[0].double().log_softmax(-1)
        return 0.6 * float(log_probs[:-1].gather(1, read[0, 1:, None]).sum())

    log_probs = _log_probs(1, 4, len(LABELS), seed=4)
    found = prefix_beam_search(
        log_probs, torch.tensor([4]), beam_size=256, fusion=Fusion([part], size=len(LABELS)), n_best=256, **EVERYTHING
    )[0]
    assert {tuple(f.tokens): pytest.approx(f.score, abs=1e-3) for f in found} == _all_scored(log_probs[0], fused)


class _Flat:
    """A decoder that gives every token the same probability."""

    max_tokens = 4

    def begin(self, h_BFD, context_lengths_B, max_tokens):
        return self

    def step(self, tokens_BU, state):
        return torch.zeros(len(tokens_BU), 6)

    def spread(self, beams):
        pass

    def select(self, rows):
        pass

    def keep(self, rows):
        pass


def test_autoregressive_beam_with_label_scores_equals_exhaustive_search(model):
    labels = ["a", "b", " ", "ab", " b", ""]
    part = LabelNeural(model, labels, weight=1.0)
    scorer = FusionScorer(Fusion([part], size=6, whole_rows=False), rows=64, candidates=6)
    found = beam_search(
        _Flat(),
        torch.zeros(1, 1, 1),
        torch.tensor([1]),
        [[0]],
        constraints=Constraints(end_id=5),
        beam_size=64,
        length_penalty=0.0,
        n_best=1,
        scorers=[scorer],
    )[0][0]
    ids = model.tokens_like(labels)

    def score(tokens, ended):
        total, state = 0.0, model.begin
        for token in tokens:
            total += float(model.row(state)[ids[token]])
            state = (*state, ids[token])
        return total + (model.end(state) if ended else 0.0) - math.log(6) * (len(tokens) + ended)

    every = {(): score((), True)}
    level = [()]
    for length in range(1, 4):
        level = [(*tokens, token) for tokens in level for token in range(5)]
        every |= {tokens: score(tokens, length < 3) for tokens in level}
    best = max(every, key=every.__getitem__)
    assert tuple(found.tokens) == best
    assert found.score == pytest.approx(every[best], abs=1e-4)


def test_rescoring_adds_the_weighted_score_of_each_text(model, by_hand):
    texts, scores = ["AB b", "b", "ab ab ab"], [-1.0, -1.1, -1.2]
    options = Rescoring(rescore_lm="lm", rescore_weight=0.5, rescore_word_score=0.2, rescore_lower=True)
    ranked = Rescorer(options, model).ranked(texts, scores, divisors=[2.0, 4.0, 1.0])
    expected = [
        score + (0.5 * by_hand(text.lower()) + 0.2 * len(text.split())) / divisor
        for text, score, divisor in zip(texts, scores, [2.0, 4.0, 1.0], strict=True)
    ]
    assert [score for _, score in ranked] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    assert [place for place, _ in ranked] == sorted(range(3), key=lambda i: -expected[i])
    ngram = estimate([text.split() for text in ("ab b", "b ab", "ab")], order=2).model
    added = Rescorer(Rescoring(rescore_lm="lm", rescore_weight=2.0), ngram).scores(["ab b", "b"])
    assert added == pytest.approx([2 * ngram.sentence_log_prob(t.split()) for t in ("ab b", "b")])


def test_search_returns_as_many_texts_as_are_rescored(folder):
    assert Rescoring(rescore_lm=None).searched(3) == 3
    assert Rescoring(rescore_lm=str(folder), rescore_best=8).searched(3) == 8
    assert Rescoring(rescore_lm=str(folder), rescore_best=2).searched(3) == 3
    assert Rescoring().rescorer() is None


def test_options_load_the_model_from_its_folder(folder):
    for unit, kind in (("word", Words), ("label", LabelNeural)):
        parts = FusionOptions(**(FUSION | {"lm": str(folder), "lm_unit": unit})).parts(LABELS)
        assert [type(part) for part in parts] == [kind]
    assert read_language_model(str(folder)) is read_language_model(str(folder)), "the model is read once"


def test_missing_and_unsuitable_models_are_errors(tmp_path, folder):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LanguageModelError, match="cannot be read as a causal language model"):
        read_language_model(str(tmp_path))
    with pytest.raises(LanguageModelError, match="no such language model"):
        read_language_model(str(tmp_path / "missing.arpa"))
    with pytest.raises(LanguageModelError, match="no token for any label"):
        LabelNeural(NeuralLM.load(str(folder)), [None, "ж"], weight=1.0)
