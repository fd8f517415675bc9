"""Batches of similar length under a budget in seconds, as a pure function of seed, epoch and rank."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ssl_asr.errors import ConfigError
from ssl_asr.types import Seconds

# Utterances are sorted within windows of about this many batches: wide enough for little padding, narrow
# enough that every epoch has other batches.
WINDOW_BATCHES = 250
# Half the range, as a share of the length, by which lengths are blurred before sorting.
JITTER = 0.04


def plan_epoch(
    durations_N: NDArray[np.float64],
    *,
    max_batch_s: Seconds,
    max_batch_size: int | None,
    seed: int,
    epoch: int,
    world_size: int = 1,
) -> list[list[int]]:
    """The batches of one epoch, a multiple of ``world_size``, every utterance in exactly one.

    A batch costs its count times its longest utterance (what is computed, padding included) and stays within
    ``max_batch_s``; an utterance longer than that is a batch of its own. Consecutive groups of ``world_size``
    batches are of similar cost, so ranks wait little for each other. Where the batches do not divide evenly,
    the largest are halved; none is dropped and none given twice.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(durations_N))
    mean_s = float(durations_N.mean())
    per_batch = max(1.0, max_batch_s / mean_s)
    if max_batch_size is not None:
        per_batch = min(per_batch, max_batch_size)
    window = max(1, round(WINDOW_BATCHES * per_batch))
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        # Sorted by a length that is a little off, an epoch that fits one window has other batches as well.
        jittered_N = durations_N[part] * rng.uniform(1 - JITTER, 1 + JITTER, len(part))
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
    """Cut utterances, in this order, into batches as large as the budget lets them be."""
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
            what = f"{sum(map(len, batches))} utterances cannot be shared by {world_size} ranks"
            raise ConfigError("data.train", what, "use fewer devices or more data")
        middle = len(batch) // 2
        batches[largest] = batch[:middle]
        batches.append(batch[middle:])


class TrainBatchSampler(Sampler[list[int]]):
    """This rank's batches of one epoch.

    Args:
        durations_N: seconds of each utterance.
        max_batch_s: the most seconds a batch may hold, padding included.
        max_batch_size: the most utterances a batch may hold; None for no limit.
        seed, epoch: the same pair always gives the same batches.
        rank, world_size: which share of them.
        start: batches of this rank to leave out at the front, to resume within an epoch.
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
    ) -> None:
        plan = plan_epoch(
            durations_N,
            max_batch_s=max_batch_s,
            max_batch_size=max_batch_size,
            seed=seed,
            epoch=epoch,
            world_size=world_size,
        )
        self.durations_N = durations_N
        self.batches = plan[rank::world_size]
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches[self.start :])

    def __len__(self) -> int:
        return len(self.batches)


class EvalBatchSampler(Sampler[list[int]]):
    """Every utterance once, longest first, ``world_size`` ranks sharing the batches.

    The longest batch comes first, so too little memory shows at once; ranks may have unequal numbers of
    batches, because nothing is repeated to even them out.
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
    """``(fill, padding)``: the share of the budget that batches cost, and the share of that cost that is padding."""
    cost_s = np.array([len(batch) * durations_N[list(batch)].max() for batch in batches])
    speech_s = sum(float(durations_N[list(batch)].sum()) for batch in batches)
    return float(np.mean(cost_s / max_batch_s)), float(1.0 - speech_s / cost_s.sum())
