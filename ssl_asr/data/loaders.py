"""Loaders of batches, which keep what was found in the audio, and can resume within an epoch."""

import time
from collections.abc import Callable, Iterator
from typing import TypedDict, TypeVar, Unpack

import torch
from torch.utils.data import DataLoader

from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.epochs import EpochBatches
from ssl_asr.data.sampler import EvalBatchSampler, TrainBatchSampler
from ssl_asr.data.transport import packed
from ssl_asr.types import Batch, Notice, Seconds

Received = TypeVar("Received")


class LoaderOptions(TypedDict):
    """Options that the loaders of all splits share."""

    num_workers: int
    worker_init_fn: Callable[[int], None]
    generator: torch.Generator


class NoticingLoader(DataLoader["Batch"]):
    """A DataLoader that keeps the notices of its batches, which worker processes made.

    Workers send packed batches, see `ssl_asr.data.transport`. The loader unpacks them, so its batches are always of
    type `Batch`.

    Args:
        dataset: A split.
        sampler: Its batches.
        notices: Notices are added as keys, in the order of the batches.
        device: Device of the samples and tokens. The host does not wait for copies to a GPU, which are made from
            page-locked memory.
        persistent: Keep workers from one iteration to the next. Default: False.
        options: Further options of the DataLoader.

    Attributes:
        waited_s: Seconds in which batches were asked for and not yet there, in all iterations so far.
    """

    def __init__(
        self,
        *,
        dataset: SpeechDataset,
        sampler: EpochBatches | EvalBatchSampler,
        notices: dict[Notice, None],
        device: torch.device,
        persistent: bool = False,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=packed if options["num_workers"] > 0 else collate,
            pin_memory=device.type == "cuda",
            persistent_workers=persistent and options["num_workers"] > 0,
            **options,
        )
        self._notices, self._device = notices, device
        self.waited_s: Seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Workers that go on from the last iteration are waited for, too.
        asked = time.monotonic()
        for found in _from_workers(super().__iter__()):
            batch = found.to(self._device, non_blocking=True)
            self.waited_s += time.monotonic() - asked
            self._notices.update(dict.fromkeys(batch.notices))
            yield batch
            asked = time.monotonic()


def _from_workers(batches: Iterator[Received]) -> Iterator[Received]:
    """The batches. A worker that has ended before its batch was received is the error that torch has for its end."""
    while True:
        try:
            found = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:
            raise RuntimeError("DataLoader worker exited unexpectedly, its batch was not received") from error
        yield found


class ResumableLoader(NoticingLoader):
    """A loader of one epoch after the other, which can resume after any batch.

    `begin` starts an epoch, for which the same workers go on. Lightning stores the ``state_dict`` in the checkpoint.
    After ``load_state_dict``, iteration starts after the last batch of the saved run. Its length is always that of the
    whole epoch.

    Args:
        dataset: The training split.
        epoch: Number of the first epoch.
        sampler: Batches of the first epoch.
        notices, device: See `NoticingLoader`.
        options: Further options of the DataLoader.
    """

    def __init__(
        self,
        *,
        dataset: SpeechDataset,
        epoch: int,
        sampler: TrainBatchSampler,
        notices: dict[Notice, None],
        device: torch.device,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self._batches = EpochBatches(epoch, sampler)
        super().__init__(
            dataset=dataset, sampler=self._batches, notices=notices, device=device, persistent=True, **options
        )
        self._yielded = 0

    def begin(self, epoch: int, sampler: TrainBatchSampler) -> None:
        """The next iteration has the batches of another epoch, or of the same one again."""
        self._batches.epoch, self._batches.sampler, self._yielded = epoch, sampler, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler = self._batches.sampler
        self._yielded = sampler.start
        for batch in super().__iter__():
            self._yielded += 1
            yield batch
        # The next iteration starts at the first batch.
        sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches that were yielded."""
        return {"epoch": self._batches.epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume within the epoch. The state of another epoch, or of a finished one, is ignored."""
        if state["epoch"] == self._batches.epoch and state["batches"] < len(self._batches):
            self._batches.sampler.start = state["batches"]
