"""Batches of similar length within a budget of computed seconds. A pure function of seed, epoch and rank.

An encoder may compute more than the speech: Whisper's window has 30 s for each utterance, or a tail of silence.
`SpeechEncoder.encoded_s` has the computed seconds of an utterance. They are the cost that the budget limits:

    utterances      |== 9 s ==|  |= 6 s =|  |5 s|
    batch           |== 9 s ==|                       computed  3 * 9 s = 27 s
                    |= 6 s =|..|                      speech    9 + 6 + 5 = 20 s
                    |5 s|......|                      padding   7 / 27 of what is computed
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ssl_asr.errors import ConfigError
from ssl_asr.types import Seconds

Unit = tuple[int, ...]
"""Indices of the utterances that become one example, see `ssl_asr.data.concatenation`."""


class BatchCost(Protocol):
    """What batches cost. `ssl_asr.models.encoder.SpeechEncoder` is one."""

    def encoded_s(self, durations_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Computed seconds of utterances, from their durations in seconds. Both float64."""

    def budget_s(self, given: Seconds | None) -> Seconds:
        """Computed seconds in a batch that is not trained on: ``given``, or a default if it is None."""


class SpeechCost:
    """Counts the speech. See `BatchCost`."""

    def encoded_s(self, durations_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """The durations."""
        return durations_N

    def budget_s(self, given: Seconds | None) -> Seconds:
        """120 seconds, if none is given."""
        return 120.0 if given is None else given


# Utterances are sorted by length within windows of about this many batches. Wide windows have little padding, narrow
# windows give different batches in each epoch.
WINDOW_BATCHES = 250
# Lengths are multiplied by a random factor in [1 - jitter, 1 + jitter] before sorting. The jitter is JITTER / number of
# batches in the window, because neighboring batches differ less where there are many, and at most MOST_JITTER.
MOST_JITTER, JITTER = 0.04, 0.75


def plan_epoch(
    durations_N: NDArray[np.float64],
    *,
    max_batch_s: Seconds,
    max_batch_size: int | None,
    seed: int,
    epoch: int,
    world_size: int = 1,
    drawn_N: NDArray[np.int64] | None = None,
    costs_N: NDArray[np.float64] | None = None,
) -> list[list[int]]:
    """Batches of one epoch. Each utterance is in exactly one batch, or as often as it was drawn.

        permute -> windows -> sort each by jittered length -> cut by budget -> group by rank -> shuffle groups

    The cost of a batch is its size times the cost of its longest utterance, which includes the padding. It is at most
    ``max_batch_s``, except for a single utterance that costs more. The number of batches is a multiple of
    ``world_size``: the largest batches are halved until it is. Each group of ``world_size`` consecutive batches has
    similar costs, so ranks wait little for each other.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch, in seconds.
        max_batch_size: Maximum number of utterances in a batch. None for no limit.
        seed, epoch: Equal pairs give equal batches.
        world_size: Number of ranks.
        drawn_N: int64, indices of the utterances of the epoch, with repeats. Default: None (each one once).
        costs_N: float64, computed seconds of each utterance. Default: None (its duration).

    Returns:
        Indices of the utterances of each batch. Rank r takes every ``world_size``-th batch, from the r-th.

    Raises:
        ConfigError: There are fewer utterances than ranks.
    """
    rng = np.random.default_rng([seed, epoch])
    costs_N = durations_N if costs_N is None else costs_N
    order = rng.permutation(np.arange(len(durations_N)) if drawn_N is None else drawn_N)
    mean_s = float(costs_N[order].mean())
    per_batch = max(1.0, max_batch_s / mean_s)
    if max_batch_size is not None:
        per_batch = min(per_batch, max_batch_size)
    window = max(1, round(WINDOW_BATCHES * per_batch))
    jitter = min(MOST_JITTER, JITTER * per_batch / min(window, len(order)))
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        # Without jitter, all epochs of a corpus that fits one window would have the same batches.
        jittered_N = durations_N[part] * rng.uniform(1 - jitter, 1 + jitter, len(part))
        from_longest = part[np.argsort(-jittered_N, kind="stable")]
        batches += _cut(from_longest, costs_N, max_batch_s, max_batch_size)
    _halve_until_divisible(batches, world_size)
    batches.sort(key=lambda batch: float(costs_N[batch].max()) * len(batch))
    groups = [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    return [batch for group in shuffled for batch in group]


def _cut(
    order: NDArray[np.int64],
    costs_N: NDArray[np.float64],
    max_batch_s: Seconds,
    max_batch_size: int | None,
) -> list[list[int]]:
    """Cut a sequence of utterances into batches, each as large as the limits allow."""
    batches: list[list[int]] = [[]]
    most_s = 0.0
    for index, cost_s in zip(order.tolist(), costs_N[order].tolist(), strict=True):
        batch = batches[-1]
        most_s = max(most_s, cost_s)
        full = max_batch_size is not None and len(batch) >= max_batch_size
        if batch and (full or most_s * (len(batch) + 1) > max_batch_s):
            batches.append([])
            most_s = cost_s
        batches[-1].append(index)
    return batches


def _halve_until_divisible(batches: list[list[int]], world_size: int) -> None:
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        if len(batch) < 2:
            what = f"has {sum(map(len, batches))} utterances for {world_size} ranks"
            raise ConfigError("data.train", what, "use fewer devices or more data")
        middle = len(batch) // 2
        batches[largest] = batch[:middle]
        batches.append(batch[middle:])


class PlannedBatches:
    """Batches of one rank, or of all ranks, which are known before any audio is read.

    Args:
        plan: Batches of all ranks, one group of ``world_size`` batches after the other.
        durations_N: float64, duration of each utterance in seconds.
        costs_N: float64, computed seconds of each utterance, or None for its duration.
        max_batch_s: Maximum cost of a batch in seconds, padding included.
        rank, world_size: Rank of this process, or None for the batches of all ranks, and number of ranks.
    """

    def __init__(
        self,
        plan: list[list[int]],
        durations_N: NDArray[np.float64],
        costs_N: NDArray[np.float64] | None,
        *,
        max_batch_s: Seconds,
        rank: int | None,
        world_size: int,
    ) -> None:
        self.batches = plan if rank is None else plan[rank::world_size]
        self.durations_N, self.costs_N = durations_N, durations_N if costs_N is None else costs_N
        self.max_batch_s = max_batch_s

    def __len__(self) -> int:
        return len(self.batches)

    def cost_s(self, batch: Sequence[int]) -> Seconds:
        """Computed seconds of a batch, padding included."""
        return float(self.costs_N[batch].max(initial=0.0)) * len(batch)


class TrainBatchSampler(PlannedBatches, Sampler[list[int] | list[Unit]]):
    """Batches of one rank in one epoch, see `plan_epoch`.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch in seconds, padding included.
        max_batch_size: Maximum number of utterances in a batch. Default: None (no limit).
        seed, epoch: Equal pairs give equal batches.
        rank, world_size: Rank of this process and number of ranks. With ``rank`` None, the batches of all ranks, one
            group of ``world_size`` batches after the other.
        start: Number of batches of this rank to skip, to resume within an epoch.
        drawn_N: See `plan_epoch`.
        units: What the sampler gives in place of each index: the indices of utterances that are joined. ``durations_N``
            are then those of the units. Default: None (utterances are not joined).
        costs_N: See `plan_epoch`.
    """

    def __init__(
        self,
        durations_N: NDArray[np.float64],
        *,
        max_batch_s: Seconds,
        max_batch_size: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = 0,
        world_size: int = 1,
        start: int = 0,
        drawn_N: NDArray[np.int64] | None = None,
        units: Sequence[Unit] | None = None,
        costs_N: NDArray[np.float64] | None = None,
    ) -> None:
        plan = plan_epoch(
            durations_N,
            max_batch_s=max_batch_s,
            max_batch_size=max_batch_size,
            seed=seed,
            epoch=epoch,
            world_size=world_size,
            drawn_N=drawn_N,
            costs_N=costs_N,
        )
        super().__init__(plan, durations_N, costs_N, max_batch_s=max_batch_s, rank=rank, world_size=world_size)
        self.start, self.units = start, units

    def __iter__(self) -> Iterator[list[int] | list[Unit]]:
        batches = self.batches[self.start :]
        if self.units is None:
            return iter(batches)
        units = self.units
        return iter([[units[index] for index in batch] for batch in batches])


class EvalBatchSampler(PlannedBatches, Sampler[list[int]]):
    """Batches of one rank for evaluation. Each utterance is in exactly one batch of one rank.

    The longest utterances come first, so running out of memory shows in the first batch. Ranks can have different
    numbers of batches, because no utterance is repeated.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch in seconds, padding included.
        max_batch_size: Maximum number of utterances in a batch. Default: None (no limit).
        rank, world_size: See `TrainBatchSampler`.
        costs_N: See `plan_epoch`.
    """

    def __init__(
        self,
        durations_N: NDArray[np.float64],
        *,
        max_batch_s: Seconds,
        max_batch_size: int | None = None,
        rank: int | None = 0,
        world_size: int = 1,
        costs_N: NDArray[np.float64] | None = None,
    ) -> None:
        order = np.argsort(-durations_N, kind="stable")
        if world_size > 1:
            share = -(-len(order) // world_size)
            max_batch_size = share if max_batch_size is None else min(share, max_batch_size)
        plan = _cut(order, durations_N if costs_N is None else costs_N, max_batch_s, max_batch_size)
        super().__init__(plan, durations_N, costs_N, max_batch_s=max_batch_s, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
