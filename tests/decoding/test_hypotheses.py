"""Texts of an autoregressive search become hypotheses, by scores worked out by hand."""

from types import SimpleNamespace

import pytest

from ssl_asr.decoding.hypotheses import to_hypotheses
from ssl_asr.decoding.rescoring import Rescorer, Rescoring
from ssl_asr.decoding.step_model import Decoded

BATCH = SimpleNamespace(utterances=[SimpleNamespace(id="u0"), SimpleNamespace(id="u1")])
SPELLED = SimpleNamespace(decode=lambda tokens: " ".join("abc"[token] for token in tokens))
FOUND = [[Decoded([0], -0.5), Decoded([1, 2], -0.75)], [Decoded([2], -0.25), Decoded([0, 0], -9.0)]]


def _texts(hypotheses):
    return [
        (one.id, one.text, one.score, one.tokens, [(o.text, o.score) for o in one.alternatives]) for one in hypotheses
    ]


def test_the_best_text_and_the_next_best_as_alternatives():
    assert _texts(to_hypotheses(BATCH, FOUND, SPELLED)) == [("u0", "a", -0.5, [0], []), ("u1", "c", -0.25, [2], [])]
    assert _texts(to_hypotheses(BATCH, FOUND, SPELLED, n_best=2)) == [
        ("u0", "a", -0.5, [0], [("b c", -0.75)]),
        ("u1", "c", -0.25, [2], [("a a", -9.0)]),
    ]


@pytest.mark.parametrize(("penalty", "scores"), [(1.0, (-0.5 + 1 / 2, -0.75 + 6 / 3)), (0.0, (-0.5 + 1, -0.75 + 6))])
def test_rescoring_divides_by_the_length_with_the_end(penalty, scores):
    """The language model gives 2 to "a" and 12 to "b c", with a weight of 0.5."""
    model = SimpleNamespace(text_log_probs=lambda texts: [{"a": 2.0, "b c": 12.0}.get(text, -99.0) for text in texts])
    rescorer = Rescorer(Rescoring(rescore_weight=0.5), model)
    first, _ = to_hypotheses(BATCH, FOUND, SPELLED, n_best=2, rescorer=rescorer, length_penalty=penalty)
    assert (first.text, first.score) == ("b c", pytest.approx(scores[1]))
    assert [(o.text, o.score) for o in first.alternatives] == [("a", pytest.approx(scores[0]))]
