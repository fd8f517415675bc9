"""Optimizers and schedulers: one pair for the pretrained encoder, one for everything else."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ssl_asr.errors import ConfigError


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights with decay; norms, biases and other vectors without."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    decayed = [p for _, p in trainable if p.ndim >= 2]
    others = [p for _, p in trainable if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class OptimizerConfig(Protocol):
    """An ``optimizer`` option."""

    @property
    def lr(self) -> float:
        """The learning rate its schedule scales."""

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer over the trainable ones of these named parameters."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW, without weight decay on norms and biases; the fused kernel where every weight is on a GPU.

    Attributes:
        lr: peak learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices only.
    """

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer over the trainable ones of these named parameters."""
        groups = parameter_groups(parameters, self.weight_decay)
        on_gpu = all(p.is_cuda for group in groups for p in group["params"])
        betas = (self.betas[0], self.betas[1])
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=on_gpu)


@dataclass(frozen=True, kw_only=True)
class Adadelta:
    """Adadelta, as SpeechBrain's heads use it.

    Attributes:
        lr: factor on the update (1.0 as published).
        rho: decay of the running averages.
        eps: added under the roots.
        weight_decay: L2, on matrices only.
    """

    lr: float
    rho: float
    eps: float
    weight_decay: float

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer over the trainable ones of these named parameters."""
        groups = parameter_groups(parameters, self.weight_decay)
        return torch.optim.Adadelta(groups, lr=self.lr, rho=self.rho, eps=self.eps)


class Scheduler(Protocol):
    """A scheduler at work; ``interval`` says when `AsrModule` steps it."""

    interval: Literal["update", "validation"]
    scheduler: Any


@dataclass(slots=True)
class UpdateScheduler:
    """A torch scheduler stepped after every update."""

    scheduler: LRScheduler
    interval: Literal["update", "validation"] = "update"


@dataclass(slots=True)
class MetricScheduler:
    """A scheduler stepped with a validation metric."""

    scheduler: Any
    monitor: str
    interval: Literal["update", "validation"] = "validation"


class SchedulerConfig(Protocol):
    """A ``scheduler`` option."""

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler | MetricScheduler:
        """The scheduler of this optimizer; ``total_updates`` is the length of the whole run."""


def _ramped(optimizer: Optimizer, *, warmup: float, total: int, shape: Callable[[float], float]) -> UpdateScheduler:
    """Linear warm-up to the full rate, then ``shape`` of the share of the rest that is done.

    Args:
        optimizer: whose rates are scaled.
        warmup: a share of the run (below 1) or a count of updates (from 1 on).
        total: updates of the run.
        shape: from 0 … 1 to a factor on the rate.
    """
    if warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
        remedy = "a share of the run below 1, or a whole number of updates"
        raise ConfigError("schedulers.warmup", f"warmup is {warmup}", remedy)
    ramp = round(warmup * total) if warmup < 1 else int(warmup)
    rest = max(1, total - ramp)

    def factor(update: int) -> float:
        return (update + 1) / ramp if update < ramp else shape(min(1.0, (update - ramp) / rest))

    return UpdateScheduler(LambdaLR(optimizer, factor))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then constant.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
    """

    warmup: float

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler:
        """The scheduler of this optimizer."""
        return _ramped(optimizer, warmup=self.warmup, total=total_updates, shape=lambda _: 1.0)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warm-up, then linear to ``final``.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        final: the factor on the learning rate at the end.
    """

    warmup: float
    final: float

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler:
        """The scheduler of this optimizer."""

        def shape(done: float) -> float:
            return 1.0 - (1.0 - self.final) * done

        return _ramped(optimizer, warmup=self.warmup, total=total_updates, shape=shape)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine to ``final``.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        final: the factor on the learning rate at the end.
    """

    warmup: float
    final: float

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler:
        """The scheduler of this optimizer."""

        def shape(done: float) -> float:
            return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))

        return _ramped(optimizer, warmup=self.warmup, total=total_updates, shape=shape)


class NewBobLR:
    """Anneal when a validation metric, lower is better, stops improving on the last validation (SpeechBrain's rule).

    Args:
        optimizer: whose learning rates are scaled.
        factor: on the rates, at each annealing.
        threshold: the relative improvement that counts.
        patience: validations without it that are let pass.
    """

    def __init__(self, optimizer: Optimizer, *, factor: float, threshold: float, patience: int) -> None:
        self.optimizer = optimizer
        self.factor, self.threshold, self.patience = factor, threshold, patience
        self.previous: float | None = None
        self.waited = 0

    def step(self, metrics: float) -> None:
        """Take the latest value of the metric."""
        if self.previous is not None:
            improvement = 0.0 if self.previous == 0 else (self.previous - metrics) / self.previous
            if improvement < self.threshold:
                self.waited += 1
            if self.waited > self.patience:
                for group in self.optimizer.param_groups:
                    group["lr"] *= self.factor
                self.waited = 0
        self.previous = metrics

    def state_dict(self) -> dict[str, Any]:
        """The last metric and how long it has been waited."""
        return {"previous": self.previous, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.previous, self.waited = state["previous"], state["waited"]


@dataclass(frozen=True, kw_only=True)
class NewBob:
    """Scale the rate by ``factor`` when the metric improves by less than ``threshold`` on the validation before.

    Attributes:
        factor: on the rate.
        threshold: the relative improvement that counts.
        patience: validations without it that are let pass.
        monitor: the logged metric, lower is better.
    """

    factor: float
    threshold: float
    patience: int
    monitor: str

    def build(self, optimizer: Optimizer, total_updates: int) -> MetricScheduler:
        """The scheduler of this optimizer."""
        newbob = NewBobLR(optimizer, factor=self.factor, threshold=self.threshold, patience=self.patience)
        return MetricScheduler(newbob, self.monitor)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Scale the rate by ``factor`` when the metric has not beaten its best for ``patience`` validations.

    Attributes:
        factor: on the rate.
        patience: validations without a new best that are let pass.
        monitor: the logged metric, lower is better.
    """

    factor: float
    patience: int
    monitor: str

    def build(self, optimizer: Optimizer, total_updates: int) -> MetricScheduler:
        """The scheduler of this optimizer."""
        plateau = ReduceLROnPlateau(optimizer, factor=self.factor, patience=self.patience)
        return MetricScheduler(plateau, self.monitor)


def total_updates(batches_per_epoch: Sequence[int], accumulate: int, max_updates: int) -> int:
    """Updates of a run: a window that the epoch's end cuts short counts as one."""
    updates = sum(math.ceil(batches / accumulate) for batches in batches_per_epoch)
    return min(updates, max_updates) if max_updates >= 0 else updates
