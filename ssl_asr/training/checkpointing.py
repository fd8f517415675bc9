"""Checkpoints that survive a crash, hold plain types, and continue a run exactly."""

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ssl_asr.errors import CheckpointError
from ssl_asr.training.module import ASRModule

FORMAT = 1
KEY = "ssl_asr"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write beside the target, flush to disk, rename, and note the checksum.

    A crash at any moment leaves the file of before or the new one, never a half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(partial)
        # Without the old checksum first, a crash between the two renames would look like damage.
        _digest_path(path).unlink(missing_ok=True)
        partial.replace(path)
        _digest_path(path).write_text(digest + "\n")
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, its checksum compared, plain types only.

    Raises:
        CheckpointError: it is missing, damaged, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(str(path), "no such checkpoint")
    noted = _digest_path(path)
    if noted.is_file() and noted.read_text().strip() != _digest(path):
        raise CheckpointError(str(path), "is damaged: its sha256 is not the one noted", "use another")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage happens to break
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(str(path), f"cannot be read: {reason}", "was it written by ssl_asr?") from None
    if checkpoint.get(KEY, {}).get("format") != FORMAT:
        raise CheckpointError(str(path), "was not written by this version of ssl_asr")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way in and out of `write_checkpoint` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write whole or not at all."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read and check."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file and its checksum."""
        Path(path).unlink(missing_ok=True)
        _digest_path(Path(path)).unlink(missing_ok=True)


class SelfDescription(Callback):
    """Puts into every checkpoint what is needed to use it with no other file: config, tokenizer, model.

    Args:
        config: the resolved config, plain data.
        description: of the model, plain data.
    """

    def __init__(self, *, config: dict[str, Any], description: dict[str, Any]) -> None:
        self.config, self.description = config, description

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add them."""
        assert isinstance(pl_module, ASRModule)
        checkpoint[KEY] = {
            "format": FORMAT,
            "config": self.config,
            "tokenizer": pl_module.tokenizer.state(),
            "model": self.description,
        }


def best_score(trainer: L.Trainer) -> float | None:
    """The monitored metric of ``best.ckpt``, or None if there was no dev split."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    scores = [c.best_model_score for c in callbacks if c.monitor and c.best_model_score is not None]
    return float(scores[0]) if scores else None


def check_resumable(checkpoint: dict[str, Any], module: ASRModule) -> None:
    """Refuse to continue a run with another vocabulary or model.

    Raises:
        CheckpointError: Names what differs.
    """
    saved, description = checkpoint[KEY], module.description()
    differing = [] if saved["tokenizer"] == module.tokenizer.state() else ["tokenizer"]
    keys = {*saved["model"], *description} - {"config", "generation"}
    differing += [f"model.{key}" for key in sorted(keys) if saved["model"].get(key) != description.get(key)]
    if differing:
        what = f"was made with another {', '.join(differing)}"
        raise CheckpointError("resume", what, "resume with the config of the run, or start anew")


class RandomStates(Callback):
    """Keeps python's, numpy's and torch's random states, each rank its own, so that a resumed run goes on exactly."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks."""
        own = _random_state()
        states = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them until training starts: what happens before may draw numbers."""
        self._restored = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore them before the first batch."""
        if self._restored is not None:
            states, self._restored = self._restored["ranks"], None
            if trainer.global_rank < len(states):
                _restore_random_state(states[trainer.global_rank])


def _random_state() -> dict[str, Any]:
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


def _restore_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
