"""Batches of similar length within a budget in seconds. A pure function of seed, epoch and rank."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ssl_asr.errors import ConfigError
from ssl_asr.types import Seconds

Unit = tuple[int, ...]
"""Indices of the utterances that become one example, see `ssl_asr.data.concatenation`."""

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
) -> list[list[int]]:
    """Batches of one epoch. Each utterance is in exactly one batch, or as often as it was drawn.

        permute -> windows -> sort each by jittered length -> cut by budget -> group by rank -> shuffle groups

    The cost of a batch is its size times its longest utterance, which includes the padding. It is at most
    ``max_batch_s``, except for a single utterance that is longer. The number of batches is a multiple of
    ``world_size``: the largest batches are halved until it is. Each group of ``world_size`` consecutive batches has
    similar costs, so ranks wait little for each other.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch, in seconds.
        max_batch_size: Maximum number of utterances in a batch. None for no limit.
        seed, epoch: Equal pairs give equal batches.
        world_size: Number of ranks.
        drawn_N: int64, indices of the utterances of the epoch, with repeats. Default: None (each one once).

    Returns:
        Indices of the utterances of each batch. Rank r takes every ``world_size``-th batch, from the r-th.

    Raises:
        ConfigError: There are fewer utterances than ranks.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(np.arange(len(durations_N)) if drawn_N is None else drawn_N)
    mean_s = float(durations_N[order].mean())
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
        batches += _cut(from_longest, durations_N, max_batch_s, max_batch_size)
    _halve_until_divisible(batches, world_size)
    batches.sort(key=lambda batch: float(durations_N[batch].max()) * len(batch))
    groups = [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    return [batch for group in shuffled for batch in group]


def _cut(
    order: NDArray[np.int64],
    durations_N: NDArray[np.float64],
    max_batch_s: Seconds,
    max_batch_size: int | None,
) -> list[list[int]]:
    """Cut a sequence of utterances into batches, each as large as the limits allow."""
    batches: list[list[int]] = [[]]
    longest_s = 0.0
    for index, duration_s in zip(order.tolist(), durations_N[order].tolist(), strict=True):
        batch = batches[-1]
        longest_s = max(longest_s, duration_s)
        full = max_batch_size is not None and len(batch) >= max_batch_size
        if batch and (full or longest_s * (len(batch) + 1) > max_batch_s):
            batches.append([])
            longest_s = duration_s
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


class TrainBatchSampler(Sampler[list[int] | list[Unit]]):
    """Batches of one rank in one epoch, see `plan_epoch`.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch in seconds, padding included.
        max_batch_size: Maximum number of utterances in a batch. Default: None (no limit).
        seed, epoch: Equal pairs give equal batches.
        rank, world_size: Rank of this process and number of ranks.
        start: Number of batches of this rank to skip, to resume within an epoch.
        drawn_N: See `plan_epoch`.
        units: What the sampler gives in place of each index: the indices of utterances that are joined. ``durations_N``
            are then those of the units. Default: None (utterances are not joined).
    """

    def __init__(
        self,
        durations_N: NDArray[np.float64],
        *,
        max_batch_s: Seconds,
        max_batch_size: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        drawn_N: NDArray[np.int64] | None = None,
        units: Sequence[Unit] | None = None,
    ) -> None:
        plan = plan_epoch(
            durations_N,
            max_batch_s=max_batch_s,
            max_batch_size=max_batch_size,
            seed=seed,
            epoch=epoch,
            world_size=world_size,
            drawn_N=drawn_N,
        )
        self.durations_N = durations_N
        self.batches = plan[rank::world_size]
        self.start, self._units = start, units

    def __iter__(self) -> Iterator[list[int] | list[Unit]]:
        batches = self.batches[self.start :]
        if self._units is None:
            return iter(batches)
        units = self._units
        return iter([[units[index] for index in batch] for batch in batches])

    def __len__(self) -> int:
        return len(self.batches)


class EvalBatchSampler(Sampler[list[int]]):
    """Batches of one rank for evaluation. Each utterance is in exactly one batch of one rank.

    The longest utterances come first, so running out of memory shows in the first batch. Ranks can have different
    numbers of batches, because no utterance is repeated.

    Args:
        durations_N: float64, duration of each utterance in seconds.
        max_batch_s: Maximum cost of a batch in seconds, padding included.
        max_batch_size: Maximum number of utterances in a batch. Default: None (no limit).
        rank, world_size: Rank of this process and number of ranks.
    """

    def __init__(
        self,
        durations_N: NDArray[np.float64],
        *,
        max_batch_s: Seconds,
        max_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        order = np.argsort(-durations_N, kind="stable")
        if world_size > 1:
            share = -(-len(order) // world_size)
            max_batch_size = share if max_batch_size is None else min(share, max_batch_size)
        batches = _cut(order, durations_N, max_batch_s, max_batch_size)
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batching_report(
    batches: Sequence[Sequence[int]], durations_N: NDArray[np.float64], max_batch_s: Seconds
) -> tuple[float, float]:
    """How well batches use the budget.

    Returns:
        ``(fill, padding)``: mean cost of a batch as a fraction of ``max_batch_s``, and padding as a fraction of the
        cost of all batches.
    """
    cost_s = np.array([len(batch) * durations_N[list(batch)].max() for batch in batches])
    speech_s = sum(float(durations_N[list(batch)].sum()) for batch in batches)
    return float(np.mean(cost_s / max_batch_s)), float(1.0 - speech_s / cost_s.sum())
