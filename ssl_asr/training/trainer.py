"""The Lightning Trainer of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from torch.amp.grad_scaler import GradScaler

from ssl_asr.training.checkpointing import AtomicCheckpointIO
from ssl_asr.training.memory import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The ``trainer`` group: Lightning's names for Lightning's things.

    Attributes:
        accelerator, devices, num_nodes, strategy, precision: as Lightning's.
        max_epochs: passes over the training data.
        max_steps: updates, whichever comes first; -1 for no limit.
        accumulate_grad_batches: batches an update; the mean is over everything in them.
        gradient_clip_val: the most the global norm over all parameters may be; null for no limit.
        check_val_every_n_epoch: epochs between validations.
        log_every_n_steps: updates between log lines.
        checkpoint_every_n_updates: updates between checkpoints within an epoch; null saves after epochs.
        max_nonfinite: updates in a row that may be skipped as not finite before the run ends with an error.
        monitor: the metric, lower is better, that chooses ``best.ckpt``.
        ema_decay: share that each update keeps of a moving average of the weights, which then is what is
            validated, tested and saved; null for none.
        average_best: also test the mean of the best so many checkpoints; null for none.
        compile: a backend of torch.compile, usually ``inductor``, that the transformer's layers are compiled with;
            null for none.
        deterministic: as Lightning's.
    """

    accelerator: str
    devices: int | str | list[int]
    num_nodes: int
    strategy: str
    precision: str
    max_epochs: int
    max_steps: int
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    check_val_every_n_epoch: int
    log_every_n_steps: int
    checkpoint_every_n_updates: int | None
    max_nonfinite: int
    monitor: str
    ema_decay: float | None
    average_best: int | None
    compile: str | None
    deterministic: bool


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, before there is a Trainer to ask."""
    rank: int | None = getattr(rank_zero_only, "rank", None)
    return rank in (None, 0)


def make_trainer(
    config: TrainerConfig,
    *,
    folder: Path,
    loggers: Sequence[Any],
    callbacks: Sequence[Callback],
    verbose: bool,
    thaws: bool = False,
) -> L.Trainer:
    """A Trainer whose checkpoints are whole and whose loaders are made anew each epoch.

    Clipping and accumulation are the module's: Lightning refuses both where there are two optimizers. A model
    that ``thaws`` has parameters that are not in the graph yet, which DDP has to look for.
    """
    plugins: list[Any] = [AtomicCheckpointIO()]
    precision: Any = config.precision
    if config.precision == "16-mixed" and config.accelerator == "cpu":
        # Lightning would quietly take bf16 without a scaler here.
        plugins.append(MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu")))
        precision = None
    bar: list[Callback] = [RichProgressBar(leave=False)] if verbose else []
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy="ddp_find_unused_parameters_true" if thaws and config.strategy == "ddp" else config.strategy,
        precision=precision,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps,
        check_val_every_n_epoch=config.check_val_every_n_epoch,
        log_every_n_steps=config.log_every_n_steps,
        deterministic=config.deterministic,
        default_root_dir=folder,
        logger=list(loggers),
        callbacks=[*callbacks, *bar],
        plugins=plugins,
        num_sanity_val_steps=0,
        # Epochs have their own batches, and so their own number of them.
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=verbose,
        enable_model_summary=False,
        enable_checkpointing=any(type(c).__name__ == "ModelCheckpoint" for c in callbacks),
    )
    return _ready(trainer)


def make_inference_trainer(
    *, accelerator: str, precision: str, console: Console | None, callbacks: Sequence[Callback] = ()
) -> L.Trainer:
    """A Trainer that only runs test loops, on one device; a console shows how far it has come."""
    bar: list[Callback] = []
    if console is not None:
        bar = [RichProgressBar(leave=False, console_kwargs={"stderr": console.stderr})]
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[*callbacks, *bar],
        enable_progress_bar=console is not None,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=True,
    )
    return _ready(trainer)


def _ready(trainer: L.Trainer) -> L.Trainer:
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    return trainer
