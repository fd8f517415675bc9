"""Tables of automata: states, scores and ends, with an automaton that counts."""

import math

import numpy as np
import torch

from ssl_asr.decoding.fusion.automata import Automaton
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


def test_states_are_followed_by_labels_and_label_0_is_one():
    fusion = Fusion([Counter()], size=3)
    begin = torch.full((2, 2), fusion.begin())
    states = fusion.nexts(begin, torch.tensor([[0, 1], [2, -1]]))
    assert fusion.rows(states).tolist() == [[[0, 1, 2], [10, 11, 12]], [[20, 21, 22], [0, 1, 2]]]
    assert fusion.ends(states).tolist() == [[0, -1], [-2, 0]]
    again = fusion.nexts(states, torch.tensor([[2, 1], [0, 1]]))
    assert fusion.ends(again).tolist() == [[-2, -2], [-2, -1]]
    assert again[0, 0] == again[0, 1] == again[1, 0] == states[1, 0], "equal keys are one state"


def test_scores_of_automata_are_added_and_what_one_forbids_is_forbidden():
    fusion = Fusion([Counter(), Counter()], size=3)
    state = fusion.nexts(torch.tensor([fusion.begin()]), torch.tensor([2]))
    assert fusion.rows(state).tolist() == [[40, 42, 44]]
    assert fusion.ends(state).tolist() == [-4]
    both = Fusion([Forbids(), Forbidden()], size=3)
    begin = torch.tensor([both.begin()])
    assert both.rows(begin).tolist() == [[-math.inf] * 3], "the sum of both infinities is no number"
    assert both.ends(begin).tolist() == [-math.inf]


def test_many_states_are_kept_apart():
    fusion = Fusion([Counter()], size=3)
    states = torch.tensor([fusion.begin()])
    for count in range(1, 400):
        states = fusion.nexts(states, torch.tensor([1]))
        assert fusion.rows(states)[0].tolist() == [10.0 * count, 10.0 * count + 1, 10.0 * count + 2]


def test_no_automata_score_nothing():
    fusion = Fusion([], size=2)
    assert fusion.rows(torch.tensor([fusion.begin()])).tolist() == [[0, 0]]
    assert fusion.ends(torch.tensor([fusion.begin()])).tolist() == [0]
