"""Averaged weights: an exponential moving average during training, and the mean of the best checkpoints after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from ssl_asr.training.checkpoint_files import read_checkpoint, write_checkpoint
from ssl_asr.training.checkpointing import MovableCheckpoint, best_checkpoint


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation, test and checkpoints.

    After each update, with the trained weights ``w``:

        average = average + (w - average) (1 - decay)

    In this form, weights that do not change stay exactly the same. The default of Lightning's callback changes them by
    rounding.

    Args:
        decay: float in (0, 1), weight of the previous average.
    """

    def __init__(self, decay: float) -> None:
        def updated(average: Tensor, current: Tensor, _: object) -> Tensor:
            return average + (current - average) * (1.0 - decay)

        super().__init__(avg_fn=updated)


class BestCheckpoints(MovableCheckpoint):
    """Keeps the ``count`` best checkpoints by ``monitor`` (lower is better), to be averaged after training.

    Args:
        folder: Folder of the checkpoints.
        monitor: str, name of the logged metric.
        count: int, number of checkpoints.
    """

    def __init__(self, folder: Path, *, monitor: str, count: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="top-epoch{epoch}-step{step}",
            monitor=monitor,
            mode="min",
            save_top_k=count,
            # A resumed run writes the file of a killed run again, under the same name.
            enable_version_counter=False,
            # It would write "epoch=", and "=" in a name is hard to type on a command line.
            auto_insert_metric_name=False,
        )


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """Returns the first checkpoint with the mean weights of all checkpoints.

    The mean is computed in float64. Integer tensors are taken from the first checkpoint.
    """
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
    """Returns the checkpoints to test after training, and writes the averaged one.

    Args:
        trainer: Trainer of the finished run.
        folder: Folder of the checkpoints.

    Returns:
        Checkpoints by suffix of their results: ``""`` for the best one, ``"_average"`` if `BestCheckpoints` is used.
        Without validation there is no best checkpoint: the value is None, for the weights at the end of the run.
    """
    best = best_checkpoint(trainer)
    found: dict[str, Path | None] = {"": folder / "best.ckpt" if best is not None and best.best_model_path else None}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoints):
            ranked = sorted(callback.best_k_models, key=lambda path: float(callback.best_k_models[path]))
            average = folder / "average.ckpt"
            if trainer.is_global_zero:
                write_checkpoint(average_checkpoints([Path(path) for path in ranked]), average)
            trainer.strategy.barrier()
            found["_average"] = average
    return found
