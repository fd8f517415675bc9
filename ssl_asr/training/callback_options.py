"""The ``callbacks`` options. Lightning is imported when a callback is built, which is slow."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ssl_asr.errors import ConfigError
from ssl_asr.training.loggers import NoLog
from ssl_asr.types import NonNegativeFloat, NonNegativeInt

if TYPE_CHECKING:
    from lightning import Callback

    from ssl_asr.config.schemas import TrainConfig


class CallbackOption(Protocol):
    """A ``callbacks`` option.

    Each option has its own name below ``callbacks``, so that several can be chosen:
    ``callbacks=[early_stopping,lr_monitor]``. A YAML file may also name a Lightning Callback class itself, with the
    arguments of its constructor:

        my_callback:
          _target_: my_package.MyCallback
          every_n: 10
    """

    def build(self) -> "Callback":
        """The Lightning callback."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop training when a validation metric stops improving. Lower is better.

    Attributes:
        monitor: Logged metric, such as ``val/wer``.
        patience: Number of validations without improvement after which training stops.
        min_delta: Smallest decrease that counts as an improvement.
    """

    monitor: str
    patience: NonNegativeInt
    min_delta: NonNegativeFloat

    def build(self) -> "Callback":
        """Lightning's EarlyStopping, whose runs can be resumed."""
        from ssl_asr.training import early_stopping

        return early_stopping.EarlyStopping(self.monitor, patience=self.patience, min_delta=self.min_delta)

    def conflicts(self, run: "TrainConfig") -> Iterable[ConfigError]:
        """A metric that is never logged."""
        key = f"callbacks.{run.callback_name(self)}.monitor"
        yield from run.check_monitor(key, self.monitor)
        if run.data.dev is None:
            yield ConfigError(
                key, f"is {self.monitor}, and there is no dev split", "give data.dev=…, or use callbacks=none"
            )


@dataclass(frozen=True, kw_only=True)
class LearningRateMonitor:
    """Log the learning rate of every parameter group, besides the rate of each optimizer that is always logged.

    Attributes:
        interval: Log at each ``step`` or at each ``epoch``.
        momentum: Also log the momentum, or the first beta.
        weight_decay: Also log the weight decay.
    """

    interval: Literal["step", "epoch"]
    momentum: bool
    weight_decay: bool

    def build(self) -> "Callback":
        """Lightning's LearningRateMonitor."""
        from lightning.pytorch import callbacks

        return callbacks.LearningRateMonitor(
            logging_interval=self.interval, log_momentum=self.momentum, log_weight_decay=self.weight_decay
        )

    def conflicts(self, run: "TrainConfig") -> Iterable[ConfigError]:
        """A run without a logger."""
        if isinstance(run.logger, NoLog):
            key = f"callbacks.{run.callback_name(self)}"
            yield ConfigError(key, "logs learning rates, and there is no logger", "use logger=csv, or callbacks=none")
