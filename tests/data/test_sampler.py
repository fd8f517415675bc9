"""Batches: budget, padding, determinism, ranks and resume."""

import numpy as np
import pytest

from ssl_asr.data.batching import Batching
from ssl_asr.data.sampler import (
    EvalBatchSampler,
    TrainBatchSampler,
    _cut,
    _halve_until_divisible,
    plan_epoch,
)
from ssl_asr.errors import ConfigError


def librispeech_like(count=20_000, seed=0):
    """Most utterances between 10 and 16 s, the rest spread below, as LibriSpeech's are."""
    rng = np.random.default_rng(seed)
    long = rng.normal(14.2, 1.3, int(0.65 * count))
    short = rng.uniform(1.5, 13.0, count - len(long))
    return np.clip(np.concatenate([long, short]), 1.3, 24.5)


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("budget", [100.0, 200.0])
def test_batches_fill_budget_with_little_padding_and_cover_all_utterances(world_size, budget):
    durations = librispeech_like()
    batches = plan_epoch(durations, max_batch_s=budget, max_batch_size=None, seed=0, epoch=0, world_size=world_size)
    costs = [durations[batch].max() * len(batch) for batch in batches]
    figures = Batching.of([durations[batch].sum() for batch in batches], costs, budget, world_size)
    assert figures.fill >= 0.90
    assert figures.padding <= 0.05
    assert max(len(b) * durations[b].max() for b in batches) <= budget
    assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
    assert len(batches) % world_size == 0


@pytest.mark.parametrize("count", [40, 845, 6000])
def test_epochs_differ_and_are_reproducible(count):
    durations = librispeech_like(count)

    def plan(seed, epoch):
        return plan_epoch(durations, max_batch_s=80.0, max_batch_size=None, seed=seed, epoch=epoch)

    first, again, second, other = plan(0, 0), plan(0, 0), plan(0, 1), plan(1, 0)
    assert first == again
    sets = [{frozenset(batch) for batch in p} for p in (first, second, other)]
    # Utterances with an isolated length can be batched in one way only.
    share = 0.1 if count > 100 else 0.7
    assert len(sets[0] & sets[1]) <= share * len(sets[0]), "consecutive epochs must not have the same batches"
    assert len(sets[0] & sets[2]) <= share * len(sets[0])


def test_ranks_get_disjoint_batches_of_similar_cost():
    durations = librispeech_like(4001)
    ranks = [TrainBatchSampler(durations, max_batch_s=100.0, rank=r, world_size=4) for r in range(4)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert sorted(seen) == list(range(4001))
    costs = np.array([[len(b) * durations[b].max() for b in rank] for rank in ranks])
    assert (costs.mean(0) / costs.max(0)).mean() > 0.9, "batches of one step have similar costs on all ranks"


def test_resume_yields_the_rest_of_the_epoch():
    durations = librispeech_like(500)
    whole = list(TrainBatchSampler(durations, max_batch_s=60.0, seed=3, epoch=2))
    rest = TrainBatchSampler(durations, max_batch_s=60.0, seed=3, epoch=2, start=7)
    assert list(rest) == whole[7:]
    assert len(rest) == len(whole)


def test_max_batch_size_and_utterance_over_budget():
    durations = np.array([50.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    batches = plan_epoch(durations, max_batch_s=10.0, max_batch_size=2, seed=0, epoch=0)
    assert [0] in batches, "an utterance over the budget is a batch by itself"
    assert max(map(len, batches)) <= 2


def test_fewer_utterances_than_ranks_is_an_error():
    with pytest.raises(ConfigError, match="has 3 utterances for 4 ranks"):
        plan_epoch(np.ones(3), max_batch_s=10.0, max_batch_size=None, seed=0, epoch=0, world_size=4)


def test_evaluation_has_each_utterance_once_longest_first():
    durations = librispeech_like(777)
    ranks = [EvalBatchSampler(durations, max_batch_s=100.0, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(777))
    first = list(ranks[0])[0]
    assert durations[first].max() == durations.max()
    assert list(EvalBatchSampler(np.array([200.0, 1.0]), max_batch_s=10.0)) == [[0], [1]]


# Small examples, worked out by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durations", "budget", "most", "batches"),
    [
        ([3.0, 2.0, 2.0, 1.0, 1.0], 4.0, None, [[0], [1, 2], [3, 4]]),
        ([3.0, 2.0, 2.0, 1.0, 1.0], 6.0, None, [[0, 1], [2, 3, 4]]),
        ([3.0, 2.0, 2.0, 1.0, 1.0], 99.0, 2, [[0, 1], [2, 3], [4]]),
        # A longer utterance counts for the whole batch, and one over the budget is alone.
        ([1.0, 3.0, 1.0, 9.0, 1.0], 4.0, None, [[0], [1], [2], [3], [4]]),
        ([1.0, 2.0, 2.0], 4.0, None, [[0, 1], [2]]),
    ],
)
def test_batches_are_cut_at_the_budget_and_at_the_most_utterances(durations, budget, most, batches):
    assert _cut(np.arange(len(durations)), np.array(durations), budget, most) == batches


def test_largest_batches_are_halved_until_each_rank_has_as_many():
    batches = [[0, 1, 2, 3, 4], [5, 6], [7]]
    _halve_until_divisible(batches, 4)
    assert batches == [[0, 1], [5, 6], [7], [2, 3, 4]]
    _halve_until_divisible(batches, 2)
    assert len(batches) == 4
    _halve_until_divisible(batches, 5)
    assert sorted(map(len, batches)) == [1, 1, 2, 2, 2]
    with pytest.raises(ConfigError, match="has 2 utterances for 3 ranks"):
        _halve_until_divisible([[0], [1]], 3)


def test_batches_of_an_epoch_are_ordered_in_groups_of_equal_cost():
    durations = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0])
    batches = plan_epoch(durations, max_batch_s=8.0, max_batch_size=1, seed=0, epoch=0, world_size=2)
    pairs = [[durations[batch[0]] for batch in batches[i : i + 2]] for i in range(0, 8, 2)]
    assert sorted(pairs) == [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]
