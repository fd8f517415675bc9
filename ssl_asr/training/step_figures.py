"""Numbers of a training step, which Lightning is given only if loggers write them.

Lightning takes some tenths of a millisecond for each number that a module logs, and loggers write one step in
``log_every_n_steps``. Whether an update is counted is known only after it, so the numbers are kept until then.
"""

import lightning as L
from torch import Tensor


class StepFigures:
    """Keeps the numbers of a training step, and logs them at its end if loggers write then.

    The numbers of the first update and of the last batch of an epoch are logged too, for callbacks.

    Attributes:
        may_be_logged: Whether the numbers of the current step may be logged. They need not be computed otherwise.
    """

    def __init__(self) -> None:
        self.may_be_logged = self._is_last = False
        self._kept: dict[str, tuple[Tensor, int]] = {}

    def begin(self, trainer: L.Trainer) -> None:
        """Start a step."""
        updates = trainer.global_step
        self._is_last = trainer.is_last_batch
        # The update of this step, if it makes one, may be skipped.
        self.may_be_logged = self._is_last or _is_written(trainer, updates) or _is_written(trainer, updates + 1)

    def keep(self, name: str, value: Tensor, batch_size: int) -> None:
        """Keep a number of this step."""
        if self.may_be_logged:
            self._kept[name] = value, batch_size

    def log(self, module: L.LightningModule) -> None:
        """End the step."""
        if not self.may_be_logged:
            return
        kept, self._kept = self._kept, {}
        if self._is_last or _is_written(module.trainer, module.trainer.global_step):
            for name, (value, batch_size) in kept.items():
                module.log(name, value.float(), on_step=True, on_epoch=False, batch_size=batch_size)


def _is_written(trainer: L.Trainer, updates: int) -> bool:
    """Whether loggers write after a step that leaves this number of updates, or it is the first update."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every <= 1 or updates % every == 0 or updates in (1, trainer.max_steps)
