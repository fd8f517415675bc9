"""What differs between epochs, for workers that read several of them.

Workers get the epoch with each index, because they have their own copy of the dataset::

    main process     batches of epoch 7                 [(7, 12), (7, 40), (7, 3)]
    worker           changes of epoch 7, drawn once     utterances 12, 40 and 3 with their speed, noise and reference
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from ssl_asr.data.augment import Augmentation
from ssl_asr.data.references import drawn_reference
from ssl_asr.data.sampler import TrainBatchSampler, Unit
from ssl_asr.data.speed import SpeedPerturbation
from ssl_asr.types import Utterance


class InEpoch(NamedTuple):
    """An example of an epoch.

    Attributes:
        epoch: Number of the epoch.
        unit: Index of an utterance, or indices of those that are joined.
    """

    epoch: int
    unit: int | Unit


@dataclass(frozen=True, slots=True)
class Changes:
    """What is changed of utterances.

    Attributes:
        factors_N2: float64, speed and tempo factor of each utterance. Default: None (all 1.0).
        augment: Changes the waveform of an utterance. Default: None (no change).
        draw: Draws one of the references of an utterance as its target. Default: None (the first one).
    """

    factors_N2: NDArray[np.float64] | None = None
    augment: Callable[[Tensor, Utterance], Tensor] | None = None
    draw: Callable[[Utterance], Utterance] | None = None


NO_CHANGES = Changes()


@dataclass(frozen=True, slots=True)
class EpochChanges:
    """The changes of each epoch.

    Attributes:
        speeds: Draws speed and tempo. None for no change.
        augmentation: Draws changes of waveforms. None for no change.
        seed: Seed of references.
    """

    speeds: SpeedPerturbation | None
    augmentation: Augmentation | None
    seed: int

    def __call__(self, epoch: int) -> Changes:
        """The changes of one epoch, always the same."""
        return Changes(
            None if self.speeds is None else self.speeds.draw(epoch),
            None if self.augmentation is None else partial(self.augmentation, epoch=epoch),
            partial(drawn_reference, seed=self.seed, epoch=epoch),
        )


class EpochBatches(Sampler[list[InEpoch]]):
    """Batches of one epoch after the other.

    Attributes:
        epoch: Number of the current epoch.
        sampler: Its batches.
    """

    def __init__(self, epoch: int, sampler: TrainBatchSampler) -> None:
        self.epoch, self.sampler = epoch, sampler

    def __iter__(self) -> Iterator[list[InEpoch]]:
        epoch = self.epoch
        return iter([[InEpoch(epoch, index) for index in batch] for batch in self.sampler])

    def __len__(self) -> int:
        return len(self.sampler)
