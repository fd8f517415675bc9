"""Schedules of the learning rate, by update or by validation; each side of the model has its own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ssl_asr.errors import ConfigError


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


def updates_of(amount: float, total: int, key: str) -> int:
    """A length given as a share of the run (below 1) or as a number of updates (from 1 on), in updates.

    Raises:
        ConfigError: it is negative, or a number of updates that is not whole.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        remedy = "a share of the run below 1, or a whole number of updates"
        raise ConfigError(f"schedulers.{key}", f"{key} is {amount}", remedy)
    return round(amount * total) if amount < 1 else int(amount)


class _ByUpdate:
    """What schedules that follow updates share: a subclass gives the factor on the rate."""

    def factor(self, update: int, total: int) -> float:
        """The factor on the learning rate for an update, counted from 0, of a run of ``total``."""
        raise AssertionError("a schedule defines its factor")

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler:
        """The scheduler of this optimizer.

        Raises:
            ConfigError: a length is senseless.
        """
        return UpdateScheduler(LambdaLR(optimizer, lambda update: self.factor(update, total_updates)))


class _Ramped(_ByUpdate):
    """Linear warm-up, then a shape over the rest of the run, which a subclass gives."""

    warmup: float

    def shape(self, done: float) -> float:
        """The factor on the rate once a share of the rest, 0 … 1, is done."""
        raise AssertionError("a schedule defines its shape")

    def factor(self, update: int, total: int) -> float:
        """The factor on the rate."""
        ramp = updates_of(self.warmup, total, "warmup")
        if update < ramp:
            return (update + 1) / ramp
        return self.shape(min(1.0, (update - ramp) / max(1, total - ramp)))


@dataclass(frozen=True, kw_only=True)
class Constant(_Ramped):
    """Linear warm-up, then constant.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
    """

    warmup: float

    def shape(self, done: float) -> float:
        """The factor on the rate."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(_Ramped):
    """Linear warm-up, then linear to ``final``.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        final: the factor on the learning rate at the end.
    """

    warmup: float
    final: float

    def shape(self, done: float) -> float:
        """The factor on the rate."""
        return 1.0 - (1.0 - self.final) * done


@dataclass(frozen=True, kw_only=True)
class Cosine(_Ramped):
    """Linear warm-up, then half a cosine to ``final``.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        final: the factor on the learning rate at the end.
    """

    warmup: float
    final: float

    def shape(self, done: float) -> float:
        """The factor on the rate."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class TriStage(_ByUpdate):
    """Linear warm-up, a plateau, then exponential decay: fairseq's ``tri_stage``, of every wav2vec 2.0 recipe.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        hold: the same, of the plateau.
        initial: the factor at the first update.
        final: the factor at the end of the run.
    """

    warmup: float
    hold: float
    initial: float
    final: float

    def factor(self, update: int, total: int) -> float:
        """The factor on the rate.

        Raises:
            ConfigError: warm-up and plateau leave nothing of the run, or ``final`` is not above 0.
        """
        warmup, hold = updates_of(self.warmup, total, "warmup"), updates_of(self.hold, total, "hold")
        if self.final <= 0:
            raise ConfigError("schedulers.final", f"final is {self.final}", "exponential decay ends above 0")
        if warmup + hold > total:
            what = f"warm-up and plateau take {warmup} + {hold} of {total} updates"
            raise ConfigError("schedulers.hold", what, "shorten them, or train longer")
        if update < warmup:
            return self.initial + (1.0 - self.initial) * update / warmup
        if update < warmup + hold:
            return 1.0
        done = min(1.0, (update - warmup - hold) / max(1, total - warmup - hold))
        return math.exp(math.log(self.final) * done)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(_ByUpdate):
    """Linear warm-up to the full rate, then falling with the root of the updates (fairseq's ``inverse_sqrt``).

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
    """

    warmup: float

    def factor(self, update: int, total: int) -> float:
        """The factor on the rate."""
        warmup = max(1, updates_of(self.warmup, total, "warmup"))
        return min((update + 1) / warmup, math.sqrt(warmup / (update + 1)))


@dataclass(frozen=True, kw_only=True)
class Noam(_ByUpdate):
    """The schedule of "Attention is all you need", the learning rate being its free factor.

    ``lr * width**-0.5 * min(n**-0.5, n * warmup**-1.5)`` for the n-th update: the peak depends on width and
    warm-up, as in ESPnet. For a peak that is ``lr`` itself take `InverseSqrt`.

    Attributes:
        warmup: updates (from 1 on), or a share of the run (below 1).
        width: features of the model.
    """

    warmup: float
    width: int

    def factor(self, update: int, total: int) -> float:
        """The factor on the rate."""
        warmup, n = max(1, updates_of(self.warmup, total, "warmup")), update + 1
        return float(self.width**-0.5 * min(n**-0.5, n * warmup**-1.5))


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


def total_updates(batches_per_epoch: Iterable[int], accumulate: int, max_updates: int) -> int:
    """Updates of a run: a window that the epoch's end cuts short counts as one.

    Epochs that the run does not come to are not asked for.
    """
    updates = 0
    for batches in batches_per_epoch:
        updates += math.ceil(batches / accumulate)
        if 0 <= max_updates <= updates:
            return max_updates
    return updates
