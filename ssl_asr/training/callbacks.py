"""What people see of a run: what trains, how fast, and what the model writes."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from rich.table import Table

from ssl_asr.metrics.report import print_samples, write_predictions
from ssl_asr.training.averaging import BestCheckpoints
from ssl_asr.training.memory import peak_gb
from ssl_asr.training.module import ASRModule
from ssl_asr.training.sides import GroupRow


def _merged(rows: list[GroupRow]) -> list[GroupRow]:
    """Rows of layers alike in everything but their number, joined as ``layers.0-11``."""
    merged: list[GroupRow] = []
    for row in rows:
        stem, _, number = row.name.rpartition(".")
        last = merged[-1] if merged else None
        if number.isdigit() and last is not None and last.name.startswith(f"{stem}."):
            alike = (last.side, last.lr, bool(last.trainable)) == (row.side, row.lr, bool(row.trainable))
            if alike:
                first = last.name.removeprefix(f"{stem}.").split("-")[0]
                merged[-1] = GroupRow(
                    row.side,
                    f"{stem}.{first}-{number}",
                    last.trainable + row.trainable,
                    last.total + row.total,
                    row.lr,
                )
                continue
        merged.append(row)
    return merged


def print_groups(rows: list[GroupRow], policy: str, console: Console) -> None:
    """Print what trains and what is frozen, with sizes and peak learning rates."""
    trains, total = sum(r.trainable for r in rows), sum(r.total for r in rows)
    title = f"{policy}: {trains:,} of {total:,} parameters train ({100 * trains / total:.1f} %)"
    table = Table(title=title, title_justify="left")
    for column, right in (
        ("optimizer", False),
        ("layer group", False),
        ("parameters", True),
        ("peak rate", True),
    ):
        table.add_column(column, justify="right" if right else "left")
    for row in _merged(rows):
        rate = f"{row.lr:g}" if row.lr is not None else "frozen"
        style = None if row.trainable else "dim"
        table.add_row(row.side, row.name, f"{row.total:,}", rate, style=style)
    console.print(table)


class Throughput(Callback):
    """Logs, of training alone, seconds an epoch, seconds of audio a second, and the most memory so far."""

    def __init__(self) -> None:
        self._audio_s = 0.0
        self._busy_s = 0.0
        self._began = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._audio_s, self._busy_s, self._began = 0.0, 0.0, time.monotonic()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock for validation."""
        self._busy_s += time.monotonic() - self._began

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """And start it again."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a batch's audio."""
        self._audio_s += sum(utterance.duration for utterance in batch.utterances)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch."""
        busy_s = max(1e-9, self._busy_s + time.monotonic() - self._began)
        pl_module.log("train/epoch_s", busy_s)
        pl_module.log("train/audio_s_per_s", self._audio_s / busy_s)
        peak = peak_gb(pl_module.device)
        if peak is not None:
            pl_module.log("train/peak_gb", peak)


class Samples(Callback):
    """At each validation, shows a few aligned hypotheses and writes them all to ``predictions/dev.jsonl``.

    Args:
        folder: the run's.
        console: where samples are shown; None shows none.
        count: how many.
    """

    def __init__(self, *, folder: Path, console: Console | None, count: int) -> None:
        self.folder, self.console, self.count = folder, console, count

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather, show, write."""
        assert isinstance(pl_module, ASRModule)
        if trainer.sanity_checking:
            return
        predictions = pl_module.gather_dev_predictions()
        if not trainer.is_global_zero or not predictions:
            return
        write_predictions(self.folder / "predictions" / "dev.jsonl", predictions)
        if self.console is not None and self.count:
            print_samples(predictions, next(iter(pl_module.normalizers.values())), self.console, self.count)


def checkpointing(
    folder: Path, *, monitor: str | None, every_n_updates: int | None, average_best: int | None
) -> list[Callback]:
    """Callbacks that keep ``best.ckpt`` by ``monitor`` (lower is better), ``last.ckpt``, and those to average.

    Args:
        folder: where to keep them.
        monitor: the metric; None keeps only the last.
        every_n_updates: also save ``last.ckpt`` within an epoch, every so many updates.
        average_best: how many of the best to keep for their mean; None for none.
    """
    callbacks: list[Callback] = []
    if monitor is not None:
        best = ModelCheckpoint(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode="min",
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        callbacks.append(best)
        if average_best is not None:
            callbacks.append(BestCheckpoints(folder, monitor=monitor, count=average_best))
    last = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        save_top_k=1,
        every_n_train_steps=every_n_updates,
        save_on_train_epoch_end=True if every_n_updates is None else None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [*callbacks, last]
