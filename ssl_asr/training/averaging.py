"""Weights averaged over time: a moving average while training, and the mean of the best checkpoints after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from ssl_asr.training.checkpointing import read_checkpoint, write_checkpoint


class EMA(WeightAveraging):
    """An exponential moving average of the weights, which validation, test and checkpoints see.

    Lightning's callback does the work; its own average would move weights that never change by rounding.

    Args:
        decay: share of the average that an update keeps.
    """

    def __init__(self, decay: float) -> None:
        def toward(average: Tensor, current: Tensor, _: Any) -> Tensor:
            return average + (current - average) * (1.0 - decay)

        super().__init__(avg_fn=toward)


class BestCheckpoints(ModelCheckpoint):
    """Keeps the best ``count`` checkpoints by ``monitor`` (lower is better), to be averaged after training.

    Args:
        folder: where they go.
        monitor: the metric.
        count: how many.
    """

    def __init__(self, folder: Path, *, monitor: str, count: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="top-{epoch}-{step}",
            monitor=monitor,
            mode="min",
            save_top_k=count,
        )


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint, with the mean of all their weights; what is counted, not measured, is the first's."""
    checkpoint = read_checkpoint(paths[0])
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    sums = {name: value.double() for name, value in weights.items() if value.is_floating_point()}
    for path in paths[1:]:
        other = read_checkpoint(path)["state_dict"]
        for name in sums:
            sums[name] += other[name]
    for name, total in sums.items():
        weights[name] = (total / len(paths)).to(weights[name].dtype)
    return checkpoint


def final_checkpoints(trainer: L.Trainer, folder: Path) -> dict[str, Path | None]:
    """What a run is tested with, by the suffix its results get: the best weights, and the mean of the best.

    Without a dev set there is no best one: the weights are those the run ended with (None).
    """
    best = folder / "best.ckpt"
    found: dict[str, Path | None] = {"": best if best.is_file() else None}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoints):
            ranked = sorted(callback.best_k_models, key=lambda path: float(callback.best_k_models[path]))
            average = folder / "average.ckpt"
            if trainer.is_global_zero:
                write_checkpoint(average_checkpoints([Path(path) for path in ranked]), average)
            trainer.strategy.barrier()
            found["_average"] = average
    return found
