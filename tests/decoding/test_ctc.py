import itertools

import torch

from ssl_asr.decoding.ctc import collapse, greedy_paths


def test_collapse_against_its_definition():
    for length in range(6):
        for path in itertools.product(range(3), repeat=length):
            merged = [label for label, _ in itertools.groupby(path)]
            assert collapse(list(path), blank=0) == [label for label in merged if label != 0]


def test_double_letters_need_a_blank_between():
    hello = [8, 5, 12, 0, 12, 15]
    assert collapse(hello, blank=0) == [8, 5, 12, 12, 15]
    assert collapse([8, 5, 12, 12, 15], blank=0) == [8, 5, 12, 15]
    assert collapse([9, 9, 0, 9], blank=9) == [0]


def test_greedy_looks_only_at_an_utterances_own_frames():
    log_probs = torch.randn(3, 7, 5).log_softmax(-1)
    lengths = torch.tensor([7, 4, 0])
    paths, scores = greedy_paths(log_probs, lengths)
    assert [len(path) for path in paths] == [7, 4, 0]
    assert paths[1] == log_probs[1, :4].argmax(-1).tolist()
    assert abs(scores[1] - float(log_probs[1, :4].max(-1).values.sum())) < 1e-5
    assert scores[2] == 0.0
    log_probs[1, 4:] += 100
    assert greedy_paths(log_probs, lengths)[0] == paths
