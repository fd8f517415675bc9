"""Figures of batches, and what batches cost."""

import numpy as np
import pytest
import torch
from rich.console import Console

from ssl_asr.data.batching import Batching, print_batching
from ssl_asr.data.sampler import EvalBatchSampler, SpeechCost, TrainBatchSampler
from tests.tables import cells
from tests.toys import toy_encoder


def test_fill_and_padding_of_batches():
    """Costs of 2 * 3 s and 1 * 2 s with 6 s of speech: half of 8 s is filled, and 2 of 8 s are padding."""
    durations = np.array([3.0, 1.0, 2.0])
    sampler = EvalBatchSampler(durations, max_batch_s=8.0)
    sampler.batches = [[0, 1], [2]]
    figures = Batching.planned(sampler)
    assert (figures.fill, figures.padding, figures.rank_balance) == (0.5, 0.25, 1.0)
    assert figures.record() == {
        "batches": 2,
        "speech_s": 6.0,
        "computed_s": 8.0,
        "fill": 0.5,
        "padding": 0.25,
        "rank_balance": 1.0,
    }


def test_rank_balance_is_mean_over_maximum_weighted_by_the_maximum():
    """Steps of three ranks: (6, 6, 3) and (2, 0, 0). The mean over the maximum is 5/6 and 1/3, weights 6 and 2."""
    figures = Batching.of([1.0] * 6, [6.0, 6.0, 3.0, 2.0, 0.0, 0.0], 6.0, 3)
    assert figures.rank_balance == pytest.approx((6 * 5 / 6 + 2 * 1 / 3) / 8)
    # In the last step of an evaluation, some ranks have no batch, and wait.
    assert Batching.of([1.0] * 4, [6.0, 6.0, 3.0, 2.0], 6.0, 3).rank_balance == figures.rank_balance


def test_no_batch_has_no_padding():
    figures = Batching.of([], [], 8.0)
    assert (figures.fill, figures.padding, figures.rank_balance) == (0.0, 0.0, 1.0)
    # A manifest whose utterances were all dropped has one batch without any.
    figures = Batching.planned(EvalBatchSampler(np.empty(0), max_batch_s=8.0))
    assert (figures.computed_s, figures.fill, figures.padding, figures.rank_balance) == (0.0, 0.0, 0.0, 1.0)


def test_the_table_has_a_row_for_each_split():
    console = Console(record=True, width=120)
    print_batching({"train": Batching.of([1800.0], [3600.0], 4800.0), "dev": Batching.of([5.0], [5.0], 5.0)}, console)
    assert cells(console) == [
        ["train", "1", "1.00", "75.0", "50.0", "100.0"],
        ["dev", "1", "0.00", "100.0", "0.0", "100.0"],
    ]


@pytest.mark.parametrize("sampler", [TrainBatchSampler, EvalBatchSampler])
def test_the_budget_limits_what_is_computed(sampler):
    """With windows of 30 s, 120 s are 4 utterances, whatever their length."""
    durations = np.random.default_rng(0).uniform(1.0, 20.0, 50)
    made = sampler(durations, max_batch_s=120.0, costs_N=np.full(50, 30.0))
    assert sorted(index for batch in made for index in batch) == list(range(50))
    assert sorted(map(len, made)) == [2] + [4] * 12
    assert Batching.planned(made).computed_s == 50 * 30
    # Utterances of similar length are together, since decoding takes longer for longer ones.
    spans = [durations[batch].max() - durations[batch].min() for batch in made]
    assert np.mean(spans) < 2.5


def test_all_ranks_together_have_the_batches_of_each():
    durations = np.random.default_rng(1).uniform(1.0, 20.0, 80)
    for sampler in (TrainBatchSampler, EvalBatchSampler):
        whole = sampler(durations, max_batch_s=60.0, rank=None, world_size=3).batches
        ranks = [sampler(durations, max_batch_s=60.0, rank=rank, world_size=3).batches for rank in range(3)]
        assert [whole[rank::3] for rank in range(3)] == ranks


def computed_s(encoder, durations, monkeypatch):
    """Seconds of log-mel frames that Whisper's encoder computes for one utterance."""
    frames = []
    log_mel = encoder.log_mel.forward
    monkeypatch.setattr(encoder.log_mel, "forward", lambda x, n: frames.append(n) or log_mel(x, n))
    for seconds in durations:
        waveform = np.zeros((1, int(seconds * 16000)), dtype=np.float32)
        encoder(torch.from_numpy(waveform), torch.tensor([waveform.shape[1]]))
    return [n / 100 for n in frames]


DURATIONS = np.array([1.0, 7.25, 29.5])


@pytest.mark.parametrize(
    ("options", "training", "tail_s"),
    [
        ({"window": "30s"}, False, 30.0),
        ({"window": "real", "tail_s": 1.0, "train_tail_s": None}, False, 1.0),
        ({"window": "real", "tail_s": 2.0, "train_tail_s": [0.5, 0.75]}, False, 2.0),
        ({"window": "real", "tail_s": 0.0, "train_tail_s": [1.5, 1.5]}, True, 1.5),
    ],
)
def test_encoded_seconds_are_what_whisper_computes(toy_checkpoints, monkeypatch, options, training, tail_s):
    encoder = toy_encoder("whisper", toy_checkpoints, **options).train(training)
    expected = np.minimum(DURATIONS + tail_s, 30.0)
    assert encoder.encoded_s(DURATIONS).tolist() == pytest.approx(expected.tolist())
    assert computed_s(encoder, DURATIONS, monkeypatch) == pytest.approx(expected.tolist(), abs=0.01)


def test_drawn_tails_never_cost_more_than_was_planned(toy_checkpoints, monkeypatch):
    encoder = toy_encoder("whisper", toy_checkpoints, window="real", tail_s=0.5, train_tail_s=[0.0, 2.0]).train()
    drawn = computed_s(encoder, [3.0] * 8, monkeypatch)
    assert len(set(drawn)) > 1
    assert max(drawn) <= encoder.encoded_s(np.array([3.0]))[0] == 5.0


def test_budgets_by_default(toy_checkpoints):
    """A window of Whisper costs 30 s, so its default has room for 16."""
    plain = toy_encoder("wav2vec2_group", toy_checkpoints)
    whisper = toy_encoder("whisper", toy_checkpoints, window="30s")
    assert [plain.budget_s(None), whisper.budget_s(None), SpeechCost().budget_s(None)] == [120.0, 480.0, 120.0]
    whisper.set_window("real", None)
    assert whisper.budget_s(None) == 180.0
    assert {one.budget_s(7.0) for one in (plain, whisper, SpeechCost())} == {7.0}
    assert plain.encoded_s(DURATIONS).tolist() == SpeechCost().encoded_s(DURATIONS).tolist() == DURATIONS.tolist()
