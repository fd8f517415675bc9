"""Callbacks of every run: table of trained parameters, speed and memory, sample hypotheses, and checkpoints."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor

from ssl_asr.console import TitledTable
from ssl_asr.data.batching import Batching
from ssl_asr.data.loaders import NoticingLoader
from ssl_asr.data.sampler import BatchCost
from ssl_asr.metrics.report import print_samples, write_predictions
from ssl_asr.training.averaging import BestCheckpoints
from ssl_asr.training.checkpointing import MovableCheckpoint
from ssl_asr.training.flops import TrainingFlops, batch_lengths, peak_flops
from ssl_asr.training.interruption import LastCheckpoint
from ssl_asr.training.memory import peak_gb
from ssl_asr.training.module import ASRModule
from ssl_asr.training.parts import is_sharded
from ssl_asr.training.sides import GroupRow
from ssl_asr.training.skips import over_ranks
from ssl_asr.types import SAMPLE_RATE, Seconds


def _merged(rows: list[GroupRow]) -> list[GroupRow]:
    """Rows of consecutive layers with the same learning rate, joined as ``layers.0-11``."""
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
    """Print the layer groups with their sizes and peak learning rates, frozen groups dimmed."""
    trains, total = sum(r.trainable for r in rows), sum(r.total for r in rows)
    table = TitledTable(f"{policy}: {trains:,} of {total:,} parameters train ({100 * trains / total:.1f} %)")
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
    """Logs seconds per epoch and seconds of audio per second, without validation, and the peak memory so far.

    ``train/loader_wait`` is the share of these seconds in which the loader had no batch ready. With
    ``data.num_workers=0``, this is the time that reading takes.

    On a card whose peak is known, also logs ``train/mfu``: the useful floating-point operations of the epoch, as a
    fraction of those that the card could have made.

    Args:
        precision: Lightning's precision. None counts no operations.

    Attributes:
        figures: What was logged at the end of the last epoch, by name.
    """

    def __init__(self, precision: str | None = None) -> None:
        self.figures: dict[str, float] = {}
        self._precision = precision
        self._peak: float | None = None
        self._flops: TrainingFlops | None = None
        self._lengths: tuple[list[Seconds], list[int]] = ([], [])
        self._audio_s = 0.0
        self._busy_s = 0.0
        self._began = 0.0
        self._waited_s = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock if the run is resumed within an epoch, since the epoch does not start again."""
        if trainer.fit_loop.restarted_mid_epoch or trainer.fit_loop.restarted_on_epoch_end:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._prepare_flops(trainer, pl_module)
        # The first batch of the epoch is already there.
        self._waited_s = _waited_s(trainer)
        self._audio_s, self._busy_s, self._began = 0.0, 0.0, time.monotonic()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock during validation."""
        self._busy_s += time.monotonic() - self._began

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch's audio."""
        self._audio_s += sum(utterance.duration for utterance in batch.utterances)
        if self._flops is not None:
            seconds, tokens = batch_lengths(batch)
            self._lengths[0].extend(seconds)
            self._lengths[1].extend(tokens)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's figures."""
        busy_s = max(1e-9, self._busy_s + time.monotonic() - self._began)
        found = {
            "train/epoch_s": busy_s,
            "train/audio_s_per_s": self._audio_s / busy_s,
            "train/loader_wait": (_waited_s(trainer) - self._waited_s) / busy_s,
            "train/peak_gb": peak_gb(pl_module.device),
        }
        if self._flops is not None and self._peak is not None:
            found["train/mfu"] = self._flops.of(*self._lengths) / (busy_s * self._peak)
        self.figures = {name: value for name, value in found.items() if value is not None}
        for name, value in self.figures.items():
            pl_module.log(name, value)

    def _prepare_flops(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count the operations of what trains now. Not on the CPU, and not of sharded weights or cached states."""
        self._lengths, self._flops = ([], []), None
        if self._precision is None or module.device.type != "cuda":
            return
        assert isinstance(module, ASRModule)
        if module.caches_states:
            return
        name, tf32 = torch.cuda.get_device_name(module.device), torch.backends.cuda.matmul.allow_tf32
        self._peak = peak_flops(name, self._precision, tf32=tf32)
        if self._peak is not None and not any(is_sharded(p) for p in module.parameters()):
            with module.without_sync(), trainer.precision_plugin.forward_context():
                self._flops = TrainingFlops(module, trainer.datamodule.train_kept[0])  # type: ignore[attr-defined]


def speed_figures(trainer: L.Trainer) -> dict[str, float]:
    """What `Throughput` logged at the end of the last epoch, by name. Empty before."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one.figures for one in callbacks if isinstance(one, Throughput)), {})


def _waited_s(trainer: L.Trainer) -> Seconds:
    """Seconds for which the trainer has waited for the loader of this epoch."""
    loader = trainer.train_dataloader
    assert isinstance(loader, NoticingLoader)
    return loader.waited_s


class BatchFigures(Callback):
    """Logs in each epoch how full its batches were, their share of padding, and how equal those of the ranks.

    ``train/fill``, ``train/padding`` and ``train/rank_balance``, see `ssl_asr.data.batching.Batching`. After a resume,
    they are those of the rest of the epoch.

    Args:
        cost: What batches cost, usually the encoder.
        budget_s: Computed seconds that a batch may have.
    """

    def __init__(self, cost: BatchCost, budget_s: Seconds) -> None:
        self._cost, self._budget_s = cost, budget_s
        # Lengths in samples, on the device, and durations of each batch of this rank.
        self._batches: list[tuple[Tensor, list[Seconds]]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._batches = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch. Nothing here waits for the device."""
        self._batches.append((batch.lengths_B, [utterance.duration for utterance in batch.utterances]))

    def _seconds(self) -> Iterator[tuple[Seconds, Seconds]]:
        """Speech and computed seconds of each batch."""
        lengths = iter(torch.cat([lengths_B for lengths_B, _ in self._batches]).tolist() if self._batches else ())
        for _, durations in self._batches:
            # An utterance whose states are cached has no samples.
            speech_N = np.array([next(lengths) / SAMPLE_RATE or duration for duration in durations])
            costs_N = self._cost.encoded_s(speech_N)
            yield float(speech_N.sum()), float(costs_N.max(initial=0.0)) * len(costs_N)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the figures of all ranks."""
        # Ranks have equally many batches, in steps.
        seconds = [pair for step in zip(*over_ranks([list(self._seconds())]), strict=True) for pair in step]
        speech_s, computed_s = [pair[0] for pair in seconds], [pair[1] for pair in seconds]
        figures = Batching.of(speech_s, computed_s, self._budget_s, trainer.world_size)
        pl_module.log("train/fill", figures.fill)
        pl_module.log("train/padding", figures.padding)
        pl_module.log("train/rank_balance", figures.rank_balance)


class LastValidation(Callback):
    """Validates after the last update of a run, wherever in an epoch it is, so that ``best.ckpt`` considers it.

    Lightning validates at fixed intervals only, and ends without a validation if ``max_steps`` or the last epoch falls
    between two of them.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a validation follow the last batch of the run if the run is resumed after it, as when it was requested.

        Lightning then validates, or knows that it has. Otherwise it would train on one more batch.
        """
        if self._is_last_epoch(trainer) and trainer.is_last_batch:
            loop = trainer.fit_loop.epoch_loop
            each_epoch = trainer.check_val_every_n_epoch is not None
            trainer.val_check_batch = 1 + (loop.batch_idx if each_epoch else loop.total_batch_idx)
            if each_epoch:
                trainer.check_val_every_n_epoch = 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Request a validation after the last batch of the run."""
        if trainer.global_step == trainer.max_steps or (self._is_last_epoch(trainer) and trainer.is_last_batch):
            # A trainer that is asked to stop validates first, if this epoch has a validation.
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1

    @staticmethod
    def _is_last_epoch(trainer: L.Trainer) -> bool:
        return trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs


class Samples(Callback):
    """At each validation, prints a few aligned hypotheses and writes all of them to ``predictions/dev.jsonl``.

    Args:
        folder: Folder of the run.
        console: Where samples are printed; None prints nothing.
        count: Number of samples.
    """

    def __init__(self, *, folder: Path, console: Console | None, count: int) -> None:
        self.folder, self.console, self.count = folder, console, count

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the predictions of all ranks, write them, and print samples."""
        assert isinstance(pl_module, ASRModule)
        if trainer.sanity_checking or getattr(trainer, "fast_dev_run", False):
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
    """Callbacks that save ``best.ckpt`` by a metric, ``last.ckpt``, and the checkpoints to average.

    Args:
        folder: Folder of the checkpoints.
        monitor: Metric of the best checkpoint, lower is better; None saves only the last.
        every_n_updates: Number of updates after which ``last.ckpt`` is also saved within an epoch. None saves it only
            at the end of each epoch.
        average_best: Number of best checkpoints to keep for their average; None for none.
    """
    callbacks: list[Callback] = []
    if monitor is not None:
        best = MovableCheckpoint(
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
    return [*callbacks, LastCheckpoint(folder, every_n_updates=every_n_updates)]
