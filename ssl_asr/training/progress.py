"""The progress bar of training, validation and test loops: lines that fit the terminal, named for what they do."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ssl_asr.console import shows_bars

# A bar with a rate needs this many columns.
_WIDE = 100
# Columns of everything besides the bar itself, without and with a rate.
_REST, _REST_WIDE = 68, 84
_SHORTEST, _LONGEST = 6, 40
# Reading a metric waits for the device, so it is not done after each batch.
_METRICS_S = 1.0


class Speed(ProgressColumn):
    """Batches per second, or seconds per batch if a batch takes longer than a second. Empty while it is unknown."""

    def render(self, task: Task) -> RenderableType:
        """The text of the column."""
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f} batches/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/batch")


class TimeLeft(ProgressColumn):
    """The time that is left in this loop, and the time that it took once it is done."""

    max_refresh = 0.5

    def render(self, task: Task) -> RenderableType:
        """The text of the column."""
        if task.finished:
            return Text(f"{_clock(task.finished_time)} in all", style="dim")
        left = task.time_remaining
        return Text("" if left is None else f"{_clock(left)} left", style="dim")


def _clock(seconds: float | None) -> str:
    """A duration such as 0:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds or 0.0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_columns(width: int) -> list[ProgressColumn]:
    """The columns of a bar for a terminal of this width. No text wraps; the bar takes what is left."""
    is_wide = width >= _WIDE
    bar = min(_LONGEST, max(_SHORTEST, width - (_REST_WIDE if is_wide else _REST)))
    texts = [
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=bar),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
        TimeLeft(Column(no_wrap=True)),
    ]
    rate = [Speed(Column(no_wrap=True))] if is_wide else []
    last = TextColumn(
        "{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"), style="italic"
    )
    return [*texts, *rate, last]


class ProgressBar(LightningBar):
    """A bar for each loop, removed at its end. That of training has the loss, and the WER of the last validation.

    Args:
        console: Where bars are shown, with all other output of the run.
        verb: What the test loop does, such as ``Transcribing``. The name of the split follows if there are several.
    """

    def __init__(self, console: Console, *, verb: str) -> None:
        super().__init__()
        self._console, self._verb = console, verb
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._enabled = True
        self._read_at = 0.0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show bars again."""
        self._enabled = True

    # Training --------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of an epoch, from 1 on."""
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        metrics = self._metrics(trainer)
        self._begin("train", f"Epoch {trainer.current_epoch + 1}{last}", self.total_train_batches, metrics)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar. The loss is read once a second."""
        if time.monotonic() - self._read_at >= _METRICS_S:
            self._read_at = time.monotonic()
            self._update("train", batch_idx + 1, metrics=self._metrics(trainer))
        else:
            self._update("train", batch_idx + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    @staticmethod
    def _metrics(trainer: L.Trainer) -> str:
        """The loss of the last batch, and the WER in percent."""
        found = trainer.callback_metrics
        parts = [f"loss {float(found['train/loss']):.3f}"] if "train/loss" in found else []
        return ", ".join([*parts, *([f"WER {100 * float(found['val/wer']):.2f} %"] if "val/wer" in found else [])])

    # Validation and tests --------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the bar of a validation."""
        if self.has_dataloader_changed(dataloader_idx):
            name = "Sanity check" if trainer.sanity_checking else "Validating"
            self._begin("val", name, self.total_val_batches_current_dataloader)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        self._update("val", batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar, and show the new WER beside the loss."""
        self.reset_dataloader_idx_tracker()
        self._remove("val")
        self._update("train", metrics=self._metrics(trainer))

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the bar of a split."""
        if self.has_dataloader_changed(dataloader_idx):
            names: list[str] = trainer.datamodule.test_names  # type: ignore[attr-defined]
            name = f" {names[dataloader_idx]}" if len(names) > 1 else ""
            self._begin("test", f"{self._verb}{name}", self.total_test_batches_current_dataloader)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        self._update("test", batch_idx + 1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self.reset_dataloader_idx_tracker()
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove all bars."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove all bars."""
        self._stop()

    # The lines -------------------------------------------------------------------------------------------------

    def _begin(self, key: str, name: str, total: float, metrics: str = "") -> None:
        """Show the bar of a loop that starts."""
        if not self._enabled:
            return
        if self._progress is None:
            columns = progress_columns(self._console.width)
            self._progress = Progress(
                *columns,
                console=self._console,
                transient=True,
                refresh_per_second=4,
                disable=not shows_bars(self._console),
            )
            self._progress.start()
        self._remove(key)
        self._tasks[key] = self._progress.add_task(name, total=total, metrics=metrics)

    def _update(self, key: str, completed: int | None = None, metrics: str | None = None) -> None:
        if self._progress is not None and key in self._tasks:
            self._progress.update(self._tasks[key], completed=completed)
            if metrics is not None:
                self._progress.update(self._tasks[key], metrics=metrics)

    def _remove(self, key: str) -> None:
        if self._progress is not None and key in self._tasks:
            self._progress.remove_task(self._tasks.pop(key))

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._tasks.clear()
