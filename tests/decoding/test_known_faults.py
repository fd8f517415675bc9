"""Faults found in the searches of other toolkits (mostly SpeechBrain 1.1.2), which ours must not have."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.ctc import CtcBeam, greedy_search
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.step_model import AtLeast, Constraints
from tests.decoding.options import CTC_BEAM, FUSION

SIZE, END = 7, 0


class _State:
    def __init__(self, rows):
        self.fed = [[] for _ in range(rows)]
        self.rows = list(range(rows))

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows.tolist()]


class _Model:
    """A decoder with logits from a table by the last token. It records the tokens it is fed."""

    max_tokens = 448

    def __init__(self, *, end_bias=0.0):
        table = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        table[:, END] += end_bias
        self.table = table
        self.states = []

    def begin(self, h_BFD, context_lengths_B, max_tokens):
        self.states.append(_State(len(h_BFD)))
        return self.states[-1]

    def step(self, tokens_BU, state):
        for row, own in zip(state.rows, tokens_BU.tolist(), strict=True):
            state.fed[row] += own
        return self.table[tokens_BU[:, -1]]


def _search(model, prompts, limits=None, rules=(), **options):
    rows = len(prompts)
    inputs = (model, torch.zeros(rows, 1, 1), torch.ones(rows, dtype=torch.int64), prompts)
    return greedy_decode(*inputs, constraints=Constraints(end_id=END, limits=limits, rules=rules), **options)


def test_sampled_tokens_are_fed_back_and_returned():
    model = _Model()
    found = _search(model, [[1]] * 8, temperature=1.5, generator=torch.Generator().manual_seed(0), limits=[12] * 8)
    (state,) = model.states
    for row, fed in zip(found, state.fed, strict=True):
        # The last token is not fed. A finished row may be fed its end token until it leaves the batch.
        assert fed[1 : len(row.tokens) + 1] == row.tokens[: len(fed) - 1]
    assert any(row.tokens != _search(_Model(), [[1]], limits=[12])[0].tokens for row in found), "no token was sampled"


def test_minimum_length_makes_short_texts_longer_and_no_text_shorter():
    prompts = [[1], [2], [3], [4], [5], [6]]
    plain = [row.tokens for row in _search(_Model(end_bias=2.0), prompts, limits=[20] * 6)]
    rule = AtLeast(tokens=4, end_id=END)
    longer = [row.tokens for row in _search(_Model(end_bias=2.0), prompts, limits=[20] * 6, rules=[rule])]
    assert min(map(len, plain)) < 4
    for before, after in zip(plain, longer, strict=True):
        assert len(after) >= max(4, len(before))


@pytest.mark.parametrize("length", [1, 4, 223, 447])
def test_prompt_takes_exactly_its_length_from_the_maximum(length):
    (found,) = _search(_Model(end_bias=-1e9), [[1] * length])
    assert len(found.tokens) == 448 - length


def test_token_limits_are_kept_per_utterance():
    found = _search(_Model(end_bias=-1e9), [[1], [2], [3]], limits=[1, 7, 30])
    assert [len(row.tokens) for row in found] == [1, 7, 30]


def test_batch_size_and_concurrent_searches_do_not_change_results():
    model = _Model()
    alone = {first: _search(model, [[first]], limits=[15])[0].tokens for first in range(1, SIZE)}
    for prompts in ([[1], [2], [3]], [[4]], [[6], [5]]):
        assert [row.tokens for row in _search(model, prompts, limits=[15] * len(prompts))] == [
            alone[prompt[0]] for prompt in prompts
        ]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(_search, model, [[first]] * 3, limits=[15] * 3) for first in range(1, SIZE)]
        for first, future in enumerate(futures, start=1):
            assert [row.tokens for row in future.result()] == [alone[first]] * 3


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_padding_is_blank_for_any_blank_id(blank):
    """Scores equal the scores with the blank at 0, beyond an utterance's length too."""
    first = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    lengths = torch.tensor([9, 4, 6])
    # Swap the blank and the label that had its id.
    order = list(range(5))
    order[0], order[blank] = blank, 0
    plain = CtcPrefixScorer(first, lengths, beams=2, blank=0, weight=1.0, candidates=None)
    moved = CtcPrefixScorer(first[..., order], lengths, beams=2, blank=blank, weight=1.0, candidates=None)
    attention = torch.zeros(6, 5)
    for tokens in ([1, 2, 3, 4, 1, 2], [2, 2, 1, 4, 3, 3]):
        expected, scores = plain.scores(attention, 0), moved.scores(attention, blank)
        torch.testing.assert_close(scores, expected[:, order])
        plain.select(torch.arange(6), torch.tensor(tokens))
        moved.select(torch.arange(6), torch.tensor([order.index(token) for token in tokens]))


def test_greedy_and_beam_search_decode_the_same_frames():
    """The fault: one search rounded a relative length, the other truncated it and lost the last label."""
    search = CtcBeam(**FUSION, **CTC_BEAM).build([None] * 4)
    for frames in range(1, 60):
        log_probs = torch.full((2, 60, 4), -12.0)
        log_probs[..., 0] = -0.001
        log_probs[0, frames - 1] = torch.tensor([-12.0, -12.0, -12.0, -0.001])
        lengths = torch.tensor([frames, 60])
        assert greedy_search(log_probs, lengths)[0][0].tokens == [3]
        found = search(log_probs, lengths)[0][0]
        assert (found.tokens, found.frames) == ([3], [frames - 1])


def test_beam_scores_are_sums_of_log_probabilities_over_a_power_of_the_length():
    """The fault: log-probabilities were divided by a temperature after the softmax."""

    class Beamed(_State):
        def spread(self, beams):
            self.fed, self.rows = [[] for _ in range(beams)], list(range(beams))

        def select(self, rows):
            pass

    model = _Model()
    model.begin = lambda h, lengths, most: Beamed(1)
    found = beam_search(
        model,
        torch.zeros(1, 1, 1),
        torch.tensor([1]),
        [[1]],
        constraints=Constraints(end_id=END, limits=[6]),
        beam_size=5,
        length_penalty=2.0,
        n_best=5,
    )[0]
    for hypothesis in found:
        path = [1, *hypothesis.tokens, *([END] if len(hypothesis.tokens) < 6 else [])]
        pairs = list(itertools.pairwise(path))
        total = sum(float(model.table[before].log_softmax(-1)[after]) for before, after in pairs)
        assert hypothesis.score == pytest.approx(total / len(pairs) ** 2, abs=1e-4)
