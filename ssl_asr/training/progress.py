"""The progress bar of training, validation and test loops."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import RenderableType
from rich.progress import ProgressColumn, Task
from rich.text import Text


class Speed(ProgressColumn):
    """Batches per second, or seconds per batch if a batch takes longer than a second. Empty while it is unknown."""

    def render(self, task: Task) -> RenderableType:
        """The text of the column."""
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f} batches/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/batch")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with a rate that is never shown as zero, and without the number of the logger's version.

    Args:
        stderr: Whether to write to standard error in place of standard output.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": stderr})

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """The columns. The last one of Lightning's is the rate."""
        return [*super().configure_columns(trainer)[:-1], Speed()]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics at the end of the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
