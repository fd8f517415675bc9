"""Updates that the device decides, so that the host does not wait for it.

Whether an update is made depends on its gradients: not if they are not finite. A host that asks waits until the device
has computed them, and then the device waits for the host. Here, the kernels of the optimizers read a flag, and change
nothing if it is set. The host counts the update, goes on, and reads the flag before the next update. If the update was
not made, the counts go back::

    host      update 1 | forward and backward 2 | read flag 1, update 2 | forward and backward 3 | read flag 2, ...
    device    backward 1, update 1 | forward and backward 2, update 2 | forward and backward 3, ...

Where the number of updates matters at once (logs, checkpoints, validation, the end), the flag is read at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssl_asr.console import shortened
from ssl_asr.decoding.host_copy import HostCopy
from ssl_asr.training.parts import is_sharded
from ssl_asr.training.schedulers import MetricScheduler, UpdateScheduler

DEVICE_TYPES = frozenset({"cuda"})
"""Devices that work ahead of the host."""


@dataclass(frozen=True, slots=True)
class Part:
    """What an update needs to know of a batch in its window.

    Attributes:
        count: Scalar, number of tokens or sum of weights.
        loss: Scalar, sum of the losses.
        ids: Ids of the utterances.
    """

    count: Tensor
    loss: Tensor
    ids: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the host learns of an update.

    Attributes:
        failed: bool, the mean of the gradients is not finite, so that the update is not made.
        count: Sum of the counts of the window over ranks. With 0, there is no mean.
        norms: Norm of the gradients of each optimizer, before the mean.
        shared: What ranks tell each other. Empty with one rank.
    """

    failed: bool
    count: float
    norms: list[float]
    shared: list[float]


@dataclass(frozen=True, slots=True)
class Pending:
    """An update whose outcome the host does not know yet.

    Attributes:
        numbers: Copy of ``failed``, ``count``, ``norms`` and ``shared`` of `Answer`.
        window: The batches of the update.
        rates: Learning rates of the update, one for each optimizer.
    """

    numbers: HostCopy
    window: list[Part]
    rates: list[float]

    def read(self) -> Answer:
        """Returns the outcome, after waiting for the device."""
        failed, count, *rest = self.numbers.read()
        norms = len(self.rates)
        return Answer(failed=bool(failed), count=count, norms=rest[:norms], shared=rest[norms:])


def device_can_decide(
    trainer: L.Trainer, optimizers: Sequence[Optimizer], schedulers: Sequence[UpdateScheduler | MetricScheduler]
) -> bool:
    """Whether the device may decide about updates.

    The optimizers have to be fused and not sharded, and the schedulers have to be of a kind that goes back. A moving
    average of the weights counts updates by itself.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return (
        trainer.strategy.root_device.type in DEVICE_TYPES
        and all(group.get("fused") for group in groups)
        and not any(is_sharded(parameter) for group in groups for parameter in group["params"])
        and all(isinstance(one, MetricScheduler) or isinstance(one.scheduler, LambdaLR) for one in schedulers)
        and not any(isinstance(one, WeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
    )


def count_matters(trainer: L.Trainer) -> bool:
    """Whether something that follows the current batch depends on the number of updates."""
    updates = trainer.global_step
    # Intervals of our last checkpoint and of Lightning's checkpoints, in updates.
    names = ("every_n_updates", "_every_n_train_steps")
    saves = [one for one in trainer.callbacks if isinstance(one, Checkpoint)]  # type: ignore[attr-defined]
    intervals = [getattr(one, name, None) for one in saves for name in names]
    return (
        trainer.is_last_batch
        or updates == trainer.max_steps
        or any(interval and updates % interval == 0 for interval in intervals)
        or validation_follows(trainer)
    )


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the current training batch."""
    loop = trainer.fit_loop
    # Lightning skips a validation without data, and calls none of its hooks.
    if loop.epoch_loop.val_loop.skip:
        return False
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def factor_on_device(
    count: Tensor, norms: Sequence[Tensor], divisor: float, clip_norm: float | None
) -> tuple[Tensor, Tensor]:
    """Returns the factor of the gradients for mean and clip, and whether it is not finite, as 0 or 1.

    Args:
        count: Scalar, count of the window. With 0, the factor is not finite.
        norms: Scalars, norm of the gradients of each optimizer, before the mean.
        divisor: float, the mean is ``divisor / count``.
        clip_norm: float, largest norm, or None.
    """
    mean = divisor / count
    norm = torch.linalg.vector_norm(torch.stack(list(norms))) * mean
    failed = (~torch.isfinite(norm)).float()
    return (mean if clip_norm is None else mean * (clip_norm / (norm + 1e-6)).clamp(max=1.0)), failed


@contextmanager
def unless(failed: Tensor, optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Steps of these optimizers change nothing if ``failed`` is 1."""
    for optimizer in optimizers:
        # torch's gradient scaler tells fused optimizers in this way.
        vars(optimizer)["found_inf"] = failed
    try:
        yield
    finally:
        for optimizer in optimizers:
            del vars(optimizer)["found_inf"]


def take_back(trainer: L.Trainer, schedulers: Sequence[UpdateScheduler | MetricScheduler]) -> None:
    """Undo the count of an update and the steps of the schedulers."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for tracker in (progress.total, progress.current):
        tracker.ready -= 1
        tracker.completed -= 1
    for scheduler in schedulers:
        if isinstance(scheduler, UpdateScheduler):
            scheduler.take_back()


def not_finite(window: Sequence[Part]) -> tuple[str, bool]:
    """The utterances of batches whose loss is not finite, with their ranks; and whether there is any such batch.

    If all losses are finite, the utterances of all batches: gradients are sums over ranks. Every rank must call it.
    """
    own = [(bool(torch.isfinite(part.loss)), part.ids) for part in window]
    shares = [own]
    if torch.distributed.is_initialized():
        shares = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(shares, own)
    is_loss = any(not finite for share in shares for finite, _ in share)
    texts = []
    for rank, share in enumerate(shares):
        ids = [each for finite, ids in share if not (finite and is_loss) for each in ids]
        of_rank = f" of rank {rank}" if len(shares) > 1 else ""
        texts += [f"utterances{of_rank}: {shortened(ids, 16)}"] if ids else []
    return "; ".join(texts), is_loss
