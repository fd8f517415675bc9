"""Loaders of batches, which keep what was found in the audio, and can resume within an epoch."""

import time
from collections.abc import Callable, Iterator
from typing import TypedDict, Unpack

import torch
from torch.utils.data import DataLoader

from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.sampler import EvalBatchSampler, TrainBatchSampler
from ssl_asr.data.transport import packed
from ssl_asr.types import Batch, Notice, Seconds


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
        options: Further options of the DataLoader.

    Attributes:
        waited_s: Seconds in which batches were asked for and not yet there, in all iterations so far.
    """

    def __init__(
        self,
        *,
        dataset: SpeechDataset,
        sampler: TrainBatchSampler | EvalBatchSampler,
        notices: dict[Notice, None],
        device: torch.device,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=packed if options["num_workers"] > 0 else collate,
            pin_memory=device.type == "cuda",
            **options,
        )
        self._notices, self._device = notices, device
        self.waited_s: Seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches, asked = super().__iter__(), time.monotonic()
        for found in batches:
            batch = found.to(self._device, non_blocking=True)
            self.waited_s += time.monotonic() - asked
            self._notices.update(dict.fromkeys(batch.notices))
            yield batch
            asked = time.monotonic()


class ResumableLoader(NoticingLoader):
    """A loader of one epoch that can resume after any batch.

    Lightning stores its ``state_dict`` in the checkpoint. After ``load_state_dict``, iteration starts after the last
    batch of the saved run. Its length is always that of the whole epoch.

    Args:
        dataset: The training split.
        sampler: Batches of the epoch.
        epoch: Number of the epoch.
        notices, device: See `NoticingLoader`.
        options: Further options of the DataLoader.
    """

    def __init__(
        self,
        *,
        dataset: SpeechDataset,
        sampler: TrainBatchSampler,
        epoch: int,
        notices: dict[Notice, None],
        device: torch.device,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(dataset=dataset, sampler=sampler, notices=notices, device=device, **options)
        self._sampler, self._epoch, self._yielded = sampler, epoch, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._yielded = self._sampler.start
        for batch in super().__iter__():
            self._yielded += 1
            yield batch
        # The next iteration starts at the first batch.
        self._sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches that were yielded."""
        return {"epoch": self._epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume within the epoch. The state of another epoch, or of a finished one, is ignored."""
        if state["epoch"] == self._epoch and state["batches"] < len(self._sampler):
            self._sampler.start = state["batches"]
