import itertools

import pytest
import torch

from ssl_asr.decoding.ctc import CtcBeam, CtcGreedy, collapse, greedy_paths
from ssl_asr.decoding.lexicon import CtcLexicon


def test_collapse_merges_repeats_and_then_removes_blanks():
    for length in range(6):
        for path in itertools.product(range(3), repeat=length):
            merged = [label for label, _ in itertools.groupby(path)]
            assert collapse(list(path), blank=0) == [label for label in merged if label != 0]


def test_double_labels_need_a_blank_in_between():
    hello = [8, 5, 12, 0, 12, 15]
    assert collapse(hello, blank=0) == [8, 5, 12, 12, 15]
    assert collapse([8, 5, 12, 12, 15], blank=0) == [8, 5, 12, 15]
    assert collapse([9, 9, 0, 9], blank=9) == [0]


def test_greedy_search_ignores_frames_beyond_the_length():
    log_probs = torch.randn(3, 7, 5).log_softmax(-1)
    lengths = torch.tensor([7, 4, 0])
    paths, scores = greedy_paths(log_probs, lengths)
    assert [len(path) for path in paths] == [7, 4, 0]
    assert paths[1] == log_probs[1, :4].argmax(-1).tolist()
    assert abs(scores[1] - float(log_probs[1, :4].max(-1).values.sum())) < 1e-5
    assert scores[2] == 0.0
    log_probs[1, 4:] += 100
    assert greedy_paths(log_probs, lengths)[0] == paths


@pytest.mark.parametrize("decoder", [CtcGreedy, CtcBeam, CtcLexicon])
def test_every_ctc_decoder_has_the_members_of_the_protocol(decoder):
    assert decoder.tasks == {"ctc", "joint"}
    assert "n_best" in {*decoder.__dataclass_fields__, *vars(decoder)}
    assert callable(decoder.build)
    assert callable(decoder.rescorer)


def test_the_greedy_decoder_gives_one_hypothesis_and_no_rescorer():
    log_probs = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    greedy = CtcGreedy()
    assert greedy.n_best == 1
    assert greedy.rescorer() is None
    assert [len(found) for found in greedy.build([None] * 4)(log_probs, torch.tensor([7, 3]))] == [1, 1]
