"""Early stopping of a run that may be resumed."""

from typing import Any

import lightning as L
from lightning.pytorch import callbacks

from ssl_asr.console import notify


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's `EarlyStopping`, which also ends a resumed run that had stopped early.

    The metric is compared at the end of each validation. Lightning's default compares it at the end of an epoch, where
    a resumed run may not have it.

    Args:
        monitor: str, name of the logged metric. Lower is better.
        patience: int, number of validations without improvement after which training stops. A resumed run uses its own
            patience, not that of the checkpoint.
        min_delta: float, smallest decrease that counts as an improvement.
    """

    def __init__(self, monitor: str, *, patience: int, min_delta: float) -> None:
        super().__init__(
            monitor,
            mode="min",
            patience=patience,
            min_delta=min_delta,
            check_finite=False,
            check_on_train_epoch_end=False,
        )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop before the first update if the run had stopped early."""
        state = checkpoint["callbacks"].get(self.state_key)
        # A patience of 0 stops at the first validation without improvement, as a patience of 1.
        if state is not None and state["wait_count"] >= max(1, self.patience):
            trainer.should_stop = True
            if trainer.is_global_zero:
                what = f"has stopped early, after {state['wait_count']} validations without a better {self.monitor}"
                remedy = "It is only tested again. Use a larger callbacks.early_stopping.patience to train longer"
                notify(f"resume: this run {what}. {remedy}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the number of validations since then."""
        super().load_state_dict({**state_dict, "patience": self.patience})
