"""Tables of automata: states, scores and ends, with an automaton that counts."""

import math

import numpy as np
import torch

from ssl_asr.decoding.fusion.automata import Automaton, LabelBonus
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.tables import Fusion


class Counter(Automaton[int]):
    """Keys are the sum of the labels. A label scores the sum so far times ten, plus itself. The end scores minus it."""

    begin = 0

    def rows(self, keys):
        return np.array([[10.0 * key + label for label in range(3)] for key in keys])

    def scores(self, key, labels):
        return self.rows([key])[0][list(labels)]

    def advance(self, key, label):
        return key + label

    def end(self, key):
        return -float(key)


class Forbids(Counter):
    """Minus infinity for label 2, and plus infinity before it has any label."""

    def rows(self, keys):
        return np.array([[0.0 if key else math.inf, 0.0, -math.inf] for key in keys])

    def end(self, key):
        return math.inf


class Forbidden(Forbids):
    def rows(self, keys):
        return np.full((len(keys), 3), -math.inf)

    def end(self, key):
        return -math.inf


EVERY = torch.arange(3)


def _scores(fusion, states):
    return fusion.extend(states, EVERY.expand(*[1] * (states.dim() - 1), 3))[0]


def _steps(fusion, states, labels):
    """States after one more label each."""
    _, nexts = fusion.extend(states, labels[..., None])
    states = torch.stack([own[..., 0] for own in nexts])
    fusion.arrive(states)
    return states


def test_states_are_followed_by_labels_and_label_0_is_one():
    fusion = Fusion([Counter()], size=3)
    states = _steps(fusion, fusion.begin(2, 2), torch.tensor([[0, 1], [2, 0]]))
    assert _scores(fusion, states).tolist() == [[[0, 1, 2], [10, 11, 12]], [[20, 21, 22], [0, 1, 2]]]
    assert fusion.ends(states).tolist() == [[0, -1], [-2, 0]]
    again = _steps(fusion, states, torch.tensor([[2, 1], [0, 1]]))
    assert fusion.ends(again).tolist() == [[-2, -2], [-2, -1]]
    assert again[0, 0, 0] == again[0, 0, 1] == again[0, 1, 0] == states[0, 1, 0], "equal keys are one state"
    # States of beams that are not extended are left as they are.
    kept = again.clone()
    fusion.arrive(kept)
    assert torch.equal(kept, again)


def test_scores_of_automata_are_added_and_what_one_forbids_is_forbidden():
    fusion = Fusion([Counter(), Counter()], size=3)
    state = _steps(fusion, fusion.begin(1), torch.tensor([2]))
    assert _scores(fusion, state).tolist() == [[40, 42, 44]]
    assert fusion.ends(state).tolist() == [-4]
    both = Fusion([Forbids(), Forbidden()], size=3)
    assert _scores(both, both.begin(1)).tolist() == [[-math.inf] * 3], "the sum of both infinities is no number"
    assert both.ends(both.begin(1)).tolist() == [-math.inf]


def test_a_forbidden_label_is_not_followed():
    fusion = Fusion([Forbids()], size=3)
    assert torch.equal(_steps(fusion, fusion.begin(1), torch.tensor([2])), fusion.begin(1))
    assert len(fusion._reached._keys) == 1


def test_automata_with_and_without_a_table_are_fused_together():
    labels = ["a", "b", None]
    fusion = Fusion([Counter(), LabelBonus(labels, bonus=0.5), Hotwords(labels, ["b"], bonus=2.0)], size=3)
    states = _steps(fusion, fusion.begin(1), torch.tensor([1]))
    assert _scores(fusion, states).tolist() == [[10 + 0.5 - 2.0, 11 + 0.5 - 2.0, -math.inf]]
    assert fusion.ends(states).tolist() == [-1 + 2.0]


def test_many_states_are_kept_apart():
    fusion = Fusion([Counter()], size=3)
    states = fusion.begin(1)
    for count in range(1, 400):
        states = _steps(fusion, states, torch.tensor([1]))
        assert _scores(fusion, states)[0].tolist() == [10.0 * count, 10.0 * count + 1, 10.0 * count + 2]


def test_rows_that_are_too_many_are_cleared_at_the_next_begin(monkeypatch):
    monkeypatch.setattr("ssl_asr.decoding.fusion.reached._MAX_CELLS", 5)
    fusion = Fusion([Counter()], size=3)
    state = _steps(fusion, fusion.begin(1), torch.tensor([2]))
    expected = _scores(fusion, state).tolist()
    assert len(fusion._reached._keys) == 2
    again = fusion.begin(1)
    assert len(fusion._reached._keys) == 1
    assert _scores(fusion, _steps(fusion, again, torch.tensor([2]))).tolist() == expected


def test_no_automata_score_nothing():
    fusion = Fusion([], size=2)
    begin = fusion.begin(1)
    assert fusion.extend(begin, torch.tensor([[0, 1]]))[0].tolist() == [[0, 0]]
    assert fusion.ends(begin).tolist() == [0]
