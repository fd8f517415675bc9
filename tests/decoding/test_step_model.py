"""What searches over autoregressive decoders share: limits, rules, the scorers of options, and coverage by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ssl_asr.decoding.coverage import CoverageScorer
from ssl_asr.decoding.seq2seq import AttentionBeam, WhisperBeam
from ssl_asr.decoding.step_model import AtLeast, Suppression, start_search
from tests.decoding.options import FUSION

BEAM = AttentionBeam(
    **FUSION, beam_size=2, length_penalty=0.0, n_best=1, max_tokens_per_s=None, ctc_weight=0.3, max_labels=5
)


def test_the_end_is_forbidden_until_the_text_is_long_enough():
    rule = AtLeast(tokens=2, end_id=1)
    for length, forbidden in ((0, True), (1, True), (2, False), (3, False)):
        logits = rule(torch.zeros(2, 3), torch.zeros(2, length, dtype=torch.int64))
        assert logits[:, [0, 2]].eq(0).all()
        assert logits[:, 1].tolist() == [-torch.inf if forbidden else 0.0] * 2


def test_suppressed_tokens_are_ids_on_the_device():
    always, first = Suppression(always=(3, 4), first=(5,)).on(torch.device("cpu"))
    assert (always.tolist(), first.tolist(), always.dtype, first.dtype) == ([3, 4], [5], torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("limits", "limit", "room"), [(None, [17, 17], 20), ([5, 9], [5, 9], 12), ([5, 99], [5, 17], 20)]
)
def test_a_search_has_room_for_its_prompt_and_its_longest_text(limits, limit, room):
    asked = []
    model = SimpleNamespace(max_tokens=20, begin=lambda *given: asked.append(given[-1]))
    start = start_search(model, torch.zeros(2, 4, 1), torch.tensor([4, 4]), [[1, 2, 3], [1, 2, 4]], limits)
    assert (start.limit_B.tolist(), asked) == (limit, [room])
    assert start.prompt_BU.tolist() == [[1, 2, 3], [1, 2, 4]]


def test_ctc_scores_if_it_has_a_weight_and_the_decoder_has_the_rest():
    log_probs = torch.zeros(1, 4, 7)
    asked = []

    def ctc():
        asked.append(1)
        return log_probs

    assert BEAM.decoder_weight == pytest.approx(0.7)
    assert [type(one).__name__ for one in BEAM.scorers(ctc, torch.tensor([4]), None)] == ["CtcPrefixScorer"]
    alone = replace(BEAM, ctc_weight=0.0)
    assert (alone.scorers(ctc, torch.tensor([4]), None), alone.decoder_weight, asked) == ([], 1.0, [1])


def test_coverage_is_added_if_it_has_a_weight():
    model = SimpleNamespace(max_tokens=9)
    assert BEAM._prepared(model, []) == (model, [])
    covered = replace(BEAM, coverage_weight=0.5)
    watched, [scorer] = covered._prepared(model, [])
    assert watched is scorer
    assert (scorer.weight, scorer.threshold, scorer.beams, scorer.max_tokens) == (0.5, 0.5, 2, 9)


def test_each_frame_is_covered_once():
    """Weights of two beams over three frames; frames above 0.5 in sum are covered."""
    steps = iter(
        [
            torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]]),
            torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.1, 0.9]]),
        ]
    )
    state = SimpleNamespace(watch=False, weights_NF=None)

    def step(tokens, given):
        given.weights_NF = next(steps)
        return torch.zeros(2, 4)

    decoder = SimpleNamespace(max_tokens=9, begin=lambda *_: state, step=step)
    scorer = CoverageScorer(decoder, beams=2, weight=0.25, threshold=0.5)
    assert scorer.begin(None, None, 9) is state
    assert state.watch
    zeros = torch.zeros(2, 4)
    scorer.step(torch.tensor([[1], [1]]), state)
    # One frame of each beam.
    assert scorer.scores(zeros, 0).tolist() == [[0.25] * 4] * 2
    scorer.select(torch.tensor([0, 1]), torch.tensor([2, 2]))
    scorer.step(torch.tensor([[2], [2]]), state)
    # The first beam covers the second frame (0.4 + 0.2) and the third, the other one nothing new.
    assert scorer.scores(zeros, 0).tolist() == [[0.5] * 4, [0.0] * 4]


def test_beam_search_of_whisper_does_not_fall_back():
    assert WhisperBeam.temperatures == (0.0,)
    assert WhisperBeam.no_speech is None
