"""What checkpoints hold besides weights, so that a run is resumed exactly."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ssl_asr.training.checkpoint_files import FORMAT, KEY
from ssl_asr.training.module import ASRModule


class SelfDescription(Callback):
    """Adds the config, the tokenizer and the model's description to every checkpoint, so that it needs no other file.

    Args:
        config: The configuration that runs, as plain data.
        description: `ASRModule.description`.
        data: `ssl_asr.training.resuming.data_description` of the training data.
    """

    def __init__(self, *, config: dict[str, Any], description: dict[str, Any], data: dict[str, Any]) -> None:
        self.config, self.description, self.data = config, description, data

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, the tokenizer and the description to the checkpoint, and write metrics that are in memory."""
        # Metrics before the checkpoint are not logged again if the process is killed and the run resumed.
        for logger in trainer.loggers:
            logger.save()
        assert isinstance(pl_module, ASRModule)
        checkpoint[KEY] = {
            "format": FORMAT,
            "config": self.config,
            "tokenizer": pl_module.tokenizer.state(),
            "model": self.description,
            "data": self.data,
            "ranks": trainer.world_size,
        }


class MovableCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that knows its best checkpoints again if the folder of the run has moved.

    Lightning forgets their scores then, and takes the next checkpoint for the best one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, with the files at their new place if they are there."""
        moved = {path: str(Path(str(self.dirpath)) / Path(path).name) for path in state_dict["best_k_models"]}
        if all(Path(path).is_file() for path in moved.values()):
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": {moved[path]: score for path, score in state_dict["best_k_models"].items()},
                **{
                    key: moved.get(state_dict[key], state_dict[key])
                    for key in ("best_model_path", "kth_best_model_path", "last_model_path")
                },
            }
        super().load_state_dict(state_dict)


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether the epoch, or the whole run, ends after the current training batch and its validation."""
    return trainer.should_stop or trainer.fit_loop.epoch_loop._is_training_done


def best_checkpoint(trainer: L.Trainer) -> ModelCheckpoint | None:
    """The callback that saves ``best.ckpt``, or None if there is no dev split."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in callbacks if callback.filename == "best"), None)


def best_score(trainer: L.Trainer) -> float | None:
    """The monitored metric of ``best.ckpt``, or None if no checkpoint was best."""
    best = best_checkpoint(trainer)
    return None if best is None or best.best_model_score is None else float(best.best_model_score)


class RandomStates(Callback):
    """Saves the random states of Python, NumPy and torch on every rank, so that a resumed run equals the whole run."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._at_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks. In a validation, which will be done again, those before it."""
        own = self._at_validation or random_state()
        states = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, since earlier steps may draw random numbers."""
        self._restored = state_dict

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the states before a validation that is done again."""
        if not trainer.sanity_checking:
            self._restore(trainer)
            self._at_validation = random_state()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation is complete."""
        self._at_validation = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the states before the first batch."""
        self._restore(trainer)

    def _restore(self, trainer: L.Trainer) -> None:
        if self._restored is not None:
            states, self._restored = self._restored["ranks"], None
            if trainer.global_rank < len(states):
                restore_random_state(states[trainer.global_rank])


def random_state() -> dict[str, Any]:
    """The random states of Python, NumPy, torch and the current CUDA device, as plain types."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random states that `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
