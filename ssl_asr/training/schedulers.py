"""Learning-rate schedules. Each side of the model (encoder, rest) has one scheduler.

Most schedules follow updates. `NewBob` and `Plateau` follow a validation metric.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ssl_asr.errors import ConfigError
from ssl_asr.types import Length, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig


@dataclass(slots=True)
class UpdateScheduler:
    """A torch scheduler that is stepped after every update."""

    scheduler: LRScheduler
    interval: Literal["update", "validation"] = "update"

    def follow(self) -> None:
        """Set the learning rates of the next update. A checkpoint has those of the schedule that it was saved with."""
        if isinstance(self.scheduler, LambdaLR):
            groups, factors = self.scheduler.optimizer.param_groups, self.scheduler.lr_lambdas
            for group, base_lr, factor in zip(groups, self.scheduler.base_lrs, factors, strict=True):
                group["lr"] = base_lr * factor(self.scheduler.last_epoch)

    def take_back(self) -> None:
        """Undo the last step. Only for schedulers that are a `LambdaLR`."""
        own = vars(self.scheduler)
        own.update(last_epoch=own["last_epoch"] - 1, _step_count=own["_step_count"] - 1)
        self.follow()
        own["_last_lr"] = [group["lr"] for group in self.scheduler.optimizer.param_groups]


class FollowsMetric(Protocol):
    """A scheduler that is stepped with a metric, for example `torch.optim.lr_scheduler.ReduceLROnPlateau`."""

    def step(self, metrics: float) -> None:
        """Updates the learning rates after a validation."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""


@dataclass(slots=True)
class MetricScheduler:
    """A scheduler that is stepped after every validation, with the metric named ``monitor``."""

    scheduler: FollowsMetric
    monitor: str
    interval: Literal["update", "validation"] = "validation"


class SchedulerConfig(Protocol):
    """A ``scheduler`` option: a frozen dataclass with the settings of a learning-rate schedule.

    To add a schedule that follows updates, derive it from `ByUpdate` and define the learning-rate factor:

        >>> from dataclasses import dataclass
        >>> import torch
        >>> from ssl_asr.training.schedulers import ByUpdate
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Halving(ByUpdate):
        ...     every: int
        ...     def factor(self, update, total):
        ...         return 0.5 ** (update // self.every)
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
        >>> scheduler = Halving(every=2).build(optimizer, total_updates=6).scheduler
        >>> rates = []
        >>> for _ in range(6):
        ...     rates.append(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]

    The YAML file ``scheduler/halving.yaml`` names the class in ``_target_`` and gives ``every`` a default. The schedule
    is then selected with ``scheduler@schedulers.encoder=halving`` or ``scheduler@schedulers.rest=halving``. A schedule
    that follows a metric has a field ``monitor`` and returns a `MetricScheduler`.
    """

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler | MetricScheduler:
        """Builds the scheduler.

        Args:
            optimizer: Optimizer of one side of the model.
            total_updates: int, number of updates of the whole run.

        Raises:
            ConfigError: If the settings do not fit the length of the run.
        """


def updates_of(amount: float, total: int, key: str) -> int:
    """Converts a length to updates.

    Args:
        amount: float, a fraction of the run if below 1, otherwise a whole number of updates.
        total: int, number of updates of the run.
        key: str, name of the setting, for errors.

    Raises:
        ConfigError: If ``amount`` is negative, or 1 or more and not whole.

    Example:
        >>> updates_of(0.1, 2000, "warmup"), updates_of(500, 2000, "warmup")
        (200, 500)
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        what = f"{key} is {amount}"
        raise ConfigError(f"schedulers.{key}", what, "use a fraction of the run below 1, or a whole number of updates")
    return round(amount * total) if amount < 1 else int(amount)


class ByUpdate(ABC):
    """Base class of schedules that follow updates. A subclass defines `factor`."""

    @abstractmethod
    def factor(self, update: int, total: int) -> float:
        """Returns the factor of the learning rate.

        Args:
            update: int, index of the update, from 0.
            total: int, number of updates of the run.

        Raises:
            ConfigError: If the settings do not fit the length of the run.
        """

    def build(self, optimizer: Optimizer, total_updates: int) -> UpdateScheduler:
        """Builds the scheduler; see `SchedulerConfig.build`."""
        return UpdateScheduler(LambdaLR(optimizer, lambda update: self.factor(update, total_updates)))


class _WithWarmup(ByUpdate):
    """Base class of schedules with a linear warm-up of ``w`` updates, then `shape` over the rest of the run.

        factor(n) = (n + 1) / w                       n < w
                    shape((n - w) / (total - w))      otherwise

    A subclass defines `shape`.
    """

    warmup: float

    @abstractmethod
    def shape(self, done: float) -> float:
        """Returns the factor of the learning rate after the fraction ``done`` of the updates after the warm-up."""

    def factor(self, update: int, total: int) -> float:
        """Returns the factor of the learning rate."""
        ramp = updates_of(self.warmup, total, "warmup")
        if update < ramp:
            return (update + 1) / ramp
        return self.shape(min(1.0, (update - ramp) / max(1, total - ramp)))


@dataclass(frozen=True, kw_only=True)
class Constant(_WithWarmup):
    """Linear warm-up, then a constant learning rate.

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
    """

    warmup: Length

    def shape(self, done: float) -> float:
        """Returns 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(_WithWarmup):
    """Linear warm-up, then linear decay to ``final``: ``shape(x) = 1 - (1 - final) x``.

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
        final: float, factor of the learning rate at the end.
    """

    warmup: Length
    final: NonNegativeFloat

    def shape(self, done: float) -> float:
        """Returns the factor of the learning rate."""
        return 1.0 - (1.0 - self.final) * done


@dataclass(frozen=True, kw_only=True)
class Cosine(_WithWarmup):
    """Linear warm-up, then half a cosine to ``final``: ``shape(x) = final + (1 - final) (1 + cos(pi x)) / 2``.

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
        final: float, factor of the learning rate at the end.
    """

    warmup: Length
    final: NonNegativeFloat

    def shape(self, done: float) -> float:
        """Returns the factor of the learning rate."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class TriStage(ByUpdate):
    """Linear warm-up, constant, exponential decay: fairseq's ``tri_stage``, the schedule of its wav2vec 2.0 recipes.

    With ``w`` updates of warm-up, ``h`` of constant learning rate and ``d`` of decay:

        factor(n) = initial + (1 - initial) n / w      n < w
                    1                                  n < w + h
                    final ^ ((n - w - h) / d)          otherwise

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
        hold: float, length of the constant part, in updates or as a fraction.
        initial: float, factor of the learning rate at the first update.
        final: float, factor of the learning rate at the end, above 0.
    """

    warmup: Length
    hold: Length
    initial: NonNegativeFloat
    final: PositiveFloat

    def factor(self, update: int, total: int) -> float:
        """Returns the factor of the learning rate.

        Raises:
            ConfigError: If warm-up and constant part are longer than the run, or ``final`` is not above 0.
        """
        warmup, hold = updates_of(self.warmup, total, "warmup"), updates_of(self.hold, total, "hold")
        if self.final <= 0:
            raise ConfigError("schedulers.final", f"got {self.final}, but exponential decay ends above 0", "use 0.05")
        if warmup + hold > total:
            what = f"warmup and hold take {warmup} + {hold} of {total} updates"
            raise ConfigError("schedulers.hold", what, "shorten them, or train longer")
        if update < warmup:
            return self.initial + (1.0 - self.initial) * update / warmup
        if update < warmup + hold:
            return 1.0
        done = min(1.0, (update - warmup - hold) / max(1, total - warmup - hold))
        return math.exp(math.log(self.final) * done)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(ByUpdate):
    """Linear warm-up, then decay with the inverse square root of the update (fairseq's ``inverse_sqrt``).

    With ``w`` updates of warm-up, for the n-th update counted from 1:

        factor = min(n / w, sqrt(w / n))

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
    """

    warmup: Length

    def factor(self, update: int, total: int) -> float:
        """Returns the factor of the learning rate."""
        warmup = max(1, updates_of(self.warmup, total, "warmup"))
        return min((update + 1) / warmup, math.sqrt(warmup / (update + 1)))


@dataclass(frozen=True, kw_only=True)
class Noam(ByUpdate):
    """The schedule of the original transformer (Vaswani et al., 2017, arXiv:1706.03762).

    With ``w`` updates of warm-up, for the n-th update counted from 1:

        factor = width^-0.5 min(n^-0.5, n w^-1.5)

    The peak learning rate depends on ``width`` and ``w``, as in ESPnet, so ``lr`` should be near 1. `InverseSqrt` has
    the same shape with a peak of ``lr``.

    Attributes:
        warmup: float, updates (1 or more) or fraction of the run (below 1).
        width: int, features of the model.
    """

    warmup: Length
    width: PositiveInt

    def factor(self, update: int, total: int) -> float:
        """Returns the factor of the learning rate."""
        warmup, n = max(1, updates_of(self.warmup, total, "warmup")), update + 1
        return float(self.width**-0.5 * min(n**-0.5, n * warmup**-1.5))


class NewBobLR:
    """Reduces learning rates when a metric stops improving on the previous validation (SpeechBrain's NewBob rule).

    After each validation, with the metric ``m`` (lower is better) and its previous value ``m'``:

        improvement = (m' - m) / m'
        if improvement < threshold, more than ``patience`` times since the last reduction:  lr = lr * factor

    Args:
        optimizer: Optimizer that gets the reduced learning rates.
        factor: float, factor of the learning rates at each reduction.
        threshold: float, smallest relative improvement.
        patience: int, number of validations without improvement that are tolerated.
    """

    def __init__(self, optimizer: Optimizer, *, factor: float, threshold: float, patience: int) -> None:
        self.optimizer = optimizer
        self.factor, self.threshold, self.patience = factor, threshold, patience
        self.previous: float | None = None
        self.waited = 0

    def step(self, metrics: float) -> None:
        """Updates the learning rates with the metric of the latest validation."""
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
        """Returns the previous metric and the number of validations without improvement."""
        return {"previous": self.previous, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.previous, self.waited = state_dict["previous"], state_dict["waited"]


def _monitor_conflicts(option: object, monitor: str, run: "TrainConfig") -> Iterator[ConfigError]:
    """Errors of a schedule that follows a metric."""
    key = f"schedulers.{run.schedulers.side_of(option)}.monitor"
    yield from run.check_monitor(key, monitor)
    if run.data.dev is None:
        what = f"is {monitor}, and there is no dev split"
        yield ConfigError(key, what, "give data.dev=…, or choose a schedule that follows updates")


@dataclass(frozen=True, kw_only=True)
class NewBob:
    """Multiplies the learning rate by ``factor`` if a metric improves too little on the previous validation.

    Attributes:
        factor: float, factor of the learning rate.
        threshold: float, smallest relative improvement.
        patience: int, number of validations without improvement that are tolerated.
        monitor: str, name of the logged metric, lower is better.
    """

    factor: PositiveFloat
    threshold: NonNegativeFloat
    patience: NonNegativeInt
    monitor: str

    def build(self, optimizer: Optimizer, total_updates: int) -> MetricScheduler:
        """Builds the scheduler; see `SchedulerConfig.build`."""
        newbob = NewBobLR(optimizer, factor=self.factor, threshold=self.threshold, patience=self.patience)
        return MetricScheduler(newbob, self.monitor)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """A metric that is never logged."""
        return _monitor_conflicts(self, self.monitor, run)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiplies the learning rate by ``factor`` if a metric has no new best for more than ``patience`` validations.

    Attributes:
        factor: float, factor of the learning rate.
        patience: int, number of validations without a new best that are tolerated.
        monitor: str, name of the logged metric, lower is better.
    """

    factor: PositiveFloat
    patience: NonNegativeInt
    monitor: str

    def build(self, optimizer: Optimizer, total_updates: int) -> MetricScheduler:
        """Builds the scheduler; see `SchedulerConfig.build`."""
        plateau = ReduceLROnPlateau(optimizer, factor=self.factor, patience=self.patience)
        return MetricScheduler(plateau, self.monitor)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """A metric that is never logged."""
        return _monitor_conflicts(self, self.monitor, run)


def total_updates(batches_per_epoch: Iterable[int], accumulate: int, max_updates: int) -> int:
    """Returns the number of updates of a run.

    Args:
        batches_per_epoch: Number of batches in each epoch. Not consumed further than ``max_updates`` requires.
        accumulate: int, batches per update. The last update of an epoch may have fewer.
        max_updates: int, upper limit, or -1 for none.

    Example:
        >>> total_updates([10, 11], accumulate=4, max_updates=-1)
        6
    """
    updates = 0
    for batches in batches_per_epoch:
        updates += math.ceil(batches / accumulate)
        if 0 <= max_updates <= updates:
            return max_updates
    return updates
