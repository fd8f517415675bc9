"""The largest batches that fit the memory of a device (``data.max_batch_s=auto``).

A search over the number of longest utterances in a batch starts at what the memory of `StepMemory` predicts. Each
number is then proven by a forward and backward pass over the largest batch that its budget makes.
"""

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ssl_asr.config.schemas import TrainConfig
from ssl_asr.data.module import ASRDataModule
from ssl_asr.data.sampler import TrainBatchSampler
from ssl_asr.errors import ConfigError
from ssl_asr.training.memory import available_bytes
from ssl_asr.training.module import ASRModule
from ssl_asr.training.probing import silent_batch
from ssl_asr.training.skips import over_ranks
from ssl_asr.training.step_memory import (
    Autocast,
    Shape,
    StepMemory,
    gradients_bytes,
    optimizer_bytes,
    step_timeline,
    weights_bytes,
)
from ssl_asr.training.trainer import is_first_process, make_trainer
from ssl_asr.types import Seconds

# Shares of the available memory that a run may take. Programs and files share the memory of a CPU.
SHARE, SHARE_OF_CPU = 0.9, 0.5
# The search ends when the number of utterances is known to this fraction.
_EXACT = 1 / 16
# Tells the processes that Lightning starts what the first one has chosen.
_CHOSEN = "SSL_ASR_MAX_BATCH_S"
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory that one process of a run may take.

    Attributes:
        available: Bytes that are available on its device.
        share: The share of them that the run may take. The rest is for the driver, for fragmentation, and on a CPU for
            other programs and processes.
    """

    available: int
    share: float = SHARE

    @classmethod
    def now(cls, device: torch.device, processes: int) -> "Room | None":
        """What is available now on a device, beside the tensors that are there already. None if it is unknown.

        Args:
            device: The device of one process.
            processes: Number of processes of the run on this machine, which share the memory of a CPU.
        """
        available = available_bytes(device)
        if available is None:
            return None
        return cls(available=available, share=SHARE if device.type == "cuda" else SHARE_OF_CPU / processes)

    @property
    def allowed(self) -> int:
        """Bytes that the run may take."""
        return int(self.share * self.available)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The batches of the first epoch under a budget.

    Attributes:
        sampler: The batches.
        shapes: Their shapes.
        tokens_N: int64, number of target tokens of each utterance of the sampler.
    """

    sampler: TrainBatchSampler
    shapes: list[Shape]
    tokens_N: NDArray[np.int64]

    @classmethod
    def of(cls, data: ASRDataModule, ranks: int = 1) -> "Planned":
        """The batches of all ranks under the budget of ``data.config``."""
        sampler, targets = data.train_sampler(0, None, ranks), data.selections["train"].targets
        assert targets is not None
        tokens_N = targets.tokens_N.astype(np.int64)
        if sampler.units is not None:
            tokens_N = np.array([tokens_N[list(unit)].sum() for unit in sampler.units])
        return cls(sampler=sampler, shapes=Shape.planned(sampler, tokens_N), tokens_N=tokens_N)


class Budgets:
    """The budgets that whole numbers of the longest utterance make, and what they take.

    Args:
        module: The model.
        data: Its data, after `ASRDataModule.select`. Its budget is changed.
        memory: The estimate for the model.
        ranks: Number of ranks.
    """

    def __init__(self, module: ASRModule, data: ASRDataModule, memory: StepMemory, ranks: int = 1) -> None:
        self._module, self._data, self._memory, self._ranks = module, data, memory, ranks
        self._plan(1.0)
        costs_N = self._planned.sampler.costs_N
        self.longest_s: Seconds = float(costs_N.max())
        rows = int(np.ceil(costs_N.sum() / self.longest_s / ranks))
        self._most = max(1, min(rows, data.config.max_batch_size or rows))

    def _plan(self, budget_s: Seconds) -> None:
        self._data.config = replace(self._data.config, max_batch_s=budget_s)
        self._planned = Planned.of(self._data, self._ranks)

    def seconds(self, rows: int) -> Seconds:
        """The budget of a number of the longest utterances, rounded up to hundredths."""
        return math.ceil(rows * self.longest_s * 100) / 100

    def peak(self, rows: int) -> float:
        """Estimated bytes of the peak of the largest batch whose budget is ``rows`` of the longest utterance."""
        self._plan(self.seconds(rows))
        return float(self._memory.of(self._planned.shapes)[1].max())

    def estimated(self, room: int) -> int:
        """Number of the longest utterances that fit ``room`` bytes by the estimate. 0 if none does."""
        return search(lambda rows: self.peak(rows) <= room, start=1, most=self._most)

    def proven(self, room: int, autocast: Autocast) -> int:
        """The same, where the largest batch makes a forward and backward pass in ``room`` bytes."""

        def fits(rows: int) -> bool:
            self._plan(self.seconds(rows))
            planned = self._planned
            largest = planned.sampler.batches[int(self._memory.of(planned.shapes)[1].argmax())]
            seconds, tokens = planned.sampler.durations_N[largest], planned.tokens_N[largest]
            batch = silent_batch(self._module, self._data.train_kept[0], seconds.tolist(), tokens.tolist())
            return has_room(lambda: step_timeline(self._module, batch, autocast, limit=room))

        return search(fits, start=max(1, self.estimated(room)), most=self._most)


def search(fits: Callable[[int], bool], *, start: int, most: int) -> int:
    """The largest number from 1 to ``most`` that fits, to a sixteenth. 0 if not even 1 fits.

    Numbers that fit grow by a quarter, others are halved, and what is between is bisected.

    Args:
        fits: Whether a number fits. All numbers below one that fits do.
        start: The number that is tried first.
        most: The largest number.

    Example:
        >>> search(lambda number: number <= 37, start=20, most=1000)
        36
    """
    low, high, tried = 0, most + 1, min(start, most)
    while high - low > max(1, int(low * _EXACT)):
        if fits(tried):
            low = tried
        else:
            high = tried
        if low == 0:
            tried = high // 2
        elif high > most:
            tried = min(most, low + max(1, low // 4))
        else:
            tried = (low + high) // 2
        if tried in (low, high):
            break
    return low


def has_room(run: Callable[[], object]) -> bool:
    """Whether something runs without an error of memory."""
    try:
        run()
        fitted = True
    except (torch.OutOfMemoryError, MemoryError):
        fitted = False
    except RuntimeError as error:
        # torch's allocator of the CPU has no class of errors.
        if "can't allocate memory" not in str(error):
            raise
        fitted = False
    if not fitted:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return fitted


def standing_bytes(module: ASRModule, config: TrainConfig, ranks: int) -> int:
    """What an update needs besides weights and the pass over a batch: states of optimizers, and copies.

    Gradients belong to a pass, but for those of earlier batches of the window. DDP has a copy of them. An average of
    the weights is another copy.
    """
    copies = int(config.trainer.accumulate_grad_batches > 1) + int(ranks > 1)
    average = weights_bytes(module) if config.trainer.ema_decay is not None else 0
    return optimizer_bytes(module) + copies * gradients_bytes(module) + average


def with_budget(
    config: TrainConfig, module: ASRModule, data: ASRDataModule, folder: Path, console: Console | None
) -> TrainConfig:
    """The config with ``data.max_batch_s=auto`` replaced by a number, also in ``data``. The weights are not changed.

    Processes that Lightning starts take the number of the first one. Those that torchrun or Slurm start take the
    smallest of all ranks.

    Raises:
        ConfigError: Not even the longest utterance fits, or the memory of the device is unknown.
    """
    if config.data.max_batch_s != "auto":
        return config
    options = replace(config.trainer, profiler=None)
    trainer = make_trainer(options, folder=folder, loggers=[], callbacks=[], console=None)
    ranks, told = trainer.world_size, os.environ.get(_CHOSEN)
    if ranks > 1 and told is not None and not is_first_process():
        found_s = float(told)
    else:
        environment = getattr(trainer.strategy, "cluster_environment", None)
        together = ranks > 1 and environment is not None and environment.creates_processes_externally
        if config.trainer.num_nodes > 1 and not together:
            what = f"is auto, which trainer.num_nodes={config.trainer.num_nodes} cannot agree on"
            raise ConfigError("data.max_batch_s", what, "start the processes by torchrun or Slurm, or give a number")
        if together:
            trainer.strategy.setup_environment()
        device, plugin = trainer.strategy.root_device, trainer.precision_plugin
        module = plugin.convert_module(module).to(device)  # type: ignore[assignment]
        space = Room.now(device, trainer.num_devices)
        if space is None:
            raise ConfigError("data.max_batch_s", f"is auto, and the memory of {device} is unknown", "give a number")
        room = space.allowed - standing_bytes(module, config, ranks)
        memory = StepMemory(module, data.train_kept, plugin.forward_context, as_cuda=False)
        budgets = Budgets(module, data, memory, ranks)
        rows = min(over_ranks([budgets.proven(room, plugin.forward_context)]))
        if rows == 0:
            what = f"is auto, and not even one utterance of {budgets.longest_s:.1f} s fits {room / _GB:.2f} GB"
            remedy = "use a smaller model, backbone.gradient_checkpointing=true, or a smaller data.max_s"
            raise ConfigError("data.max_batch_s", what, remedy)
        found_s = budgets.seconds(rows)
        os.environ[_CHOSEN] = repr(found_s)
        if console is not None:
            of = f"{100 * space.share:.0f} % of the {space.available / _GB:.1f} GB that are available on {device}"
            console.print(
                f"data.max_batch_s=auto: chose {found_s:g} s, {rows} times the longest utterance. Its largest batch "
                f"made a forward and backward pass in {of}.",
                highlight=False,
                soft_wrap=True,
            )
    data.config = replace(data.config, max_batch_s=found_s)
    return replace(config, data=data.config)
