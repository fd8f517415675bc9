"""Checkpoints are written in the background, while training goes on.

    training thread     copy all tensors to host memory | updates …           | wait for the last write | copy | …
    background thread                                   | write, hash, fsync, rename | remove the old checkpoint |

At most one checkpoint is being written. Whatever needs the file waits for it: the next checkpoint, loading a
checkpoint, the end of training, a signal, and an error that ends training.
"""

import sys
import time
from collections import OrderedDict, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ssl_asr.config.interruption import Interruption
from ssl_asr.console import notify
from ssl_asr.errors import CheckpointError
from ssl_asr.training.checkpoint_files import read_undamaged, write_checkpoint
from ssl_asr.types import Seconds


class HostCopies:
    """Copies checkpoints to host memory. The memory is pinned for copies from CUDA, and each copy uses it again.

    Tensors that share memory share it in the copy too, so that a file of the copy equals a file of the original.
    """

    def __init__(self) -> None:
        # Memory of the last copy, by size in bytes and whether it is pinned.
        self._buffers: dict[tuple[int, bool], list[Tensor]] = {}

    def copy(self, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
        """Copy a checkpoint. The copy is valid until the next call.

        Args:
            checkpoint: Tensors and plain data in dicts, lists and tuples.

        Returns:
            The copy, and an event. CUDA transfers are complete when the event has happened. The training thread need
            not wait for it, because later updates run after the transfers. None without tensors on CUDA.
        """
        free, self._buffers = self._buffers, defaultdict(list)
        storages: dict[tuple[torch.device, int], Tensor] = {}
        copied: dict[str, Any] = self._copied(checkpoint, free, storages)
        if not any(device.type == "cuda" for device, _ in storages):
            return copied, None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return copied, event

    def free(self) -> None:
        """Free the memory."""
        self._buffers = {}

    def _copied(
        self,
        value: Any,
        free: dict[tuple[int, bool], list[Tensor]],
        storages: dict[tuple[torch.device, int], Tensor],
    ) -> Any:
        if isinstance(value, Tensor):
            return self._copied_tensor(value.detach(), free, storages)
        if type(value) in (dict, OrderedDict):
            made = type(value)()
            for key, item in value.items():
                made[key] = self._copied(item, free, storages)
            # The weights of a module have its versions in an attribute.
            if hasattr(value, "__dict__"):
                made.__dict__.update(deepcopy(value.__dict__))
            return made
        if type(value) in (list, tuple):
            return type(value)(self._copied(item, free, storages) for item in value)
        return deepcopy(value)

    def _copied_tensor(
        self,
        tensor: Tensor,
        free: dict[tuple[int, bool], list[Tensor]],
        storages: dict[tuple[torch.device, int], Tensor],
    ) -> Tensor:
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        if storage.nbytes() == 0 or place not in storages:
            pinned = tensor.device.type == "cuda"
            key = (storage.nbytes(), pinned)
            found = free.get(key)
            host = found.pop() if found else torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
            original = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            host.copy_(original, non_blocking=pinned)
            self._buffers[key].append(host)
            storages[place] = host
        shared = storages[place].untyped_storage()
        layout = (tensor.storage_offset(), tensor.size(), tensor.stride())
        return torch.empty(0, dtype=tensor.dtype).set_(shared, *layout)


class BackgroundCheckpointIO(TorchCheckpointIO):
    """Lightning's interface to checkpoint files. Files are written in the background while `in_background` is set.

    Lightning's ``AsyncCheckpointIO`` is not used. It copies tensors on their own device, which takes GPU memory for all
    weights and optimizer states. It removes an old checkpoint while the new one is still being written, and loads a
    checkpoint without waiting for it. It holds a copy for each save that waits in its queue. After a failed write, it
    goes on writing.

    Attributes:
        in_background: Whether `save_checkpoint` returns before the file is written.
        waited_s: Seconds for which callers have waited in `save_checkpoint`.
    """

    def __init__(self) -> None:
        self.in_background = False
        self.waited_s: Seconds = 0.0
        self._copies = HostCopies()
        self._thread: ThreadPoolExecutor | None = None
        # The write in progress, and the removals that follow it.
        self._jobs: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a file atomically, after the last one is written.

        Raises:
            CheckpointError: The file cannot be written. In the background: the last one could not be written.
        """
        began = time.monotonic()
        self.wait()
        if self.in_background:
            if self._thread is None:
                # Threads do not survive a fork, so none is started before the first checkpoint.
                self._thread = ThreadPoolExecutor(1, "checkpoints")
            copied, event = self._copies.copy(checkpoint)
            self._jobs.append(self._thread.submit(_write, copied, event, Path(path)))
        else:
            write_checkpoint(checkpoint, Path(path))
        self.waited_s += time.monotonic() - began

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read and compare the digest. Lightning also sends weights between processes this way, without our keys."""
        self.wait()
        return read_undamaged(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file, after the write in progress. The file is kept if that write fails."""
        if self._jobs and self._thread is not None:
            self._jobs.append(self._thread.submit(_remove_after, self._jobs[0], Path(path)))
        else:
            Path(path).unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until the file is written.

        Raises:
            CheckpointError: It could not be written.
        """
        while self._jobs:
            wait_for(self._jobs[:1])
            self._jobs.pop(0).result()

    def check(self) -> None:
        """Raise the error of a write that has failed. Does not wait.

        Raises:
            CheckpointError: The file could not be written.
        """
        while self._jobs and self._jobs[0].done():
            self._jobs.pop(0).result()

    def teardown(self) -> None:
        """Wait until the file is written, end the thread, and free the memory of copies.

        Raises:
            CheckpointError: The file could not be written. If another exception is being handled, the error is
                printed instead.
        """
        self.in_background = False
        ends_by_error = sys.exc_info()[1] is not None
        try:
            self.wait()
        except (CheckpointError, OSError) as error:
            if not ends_by_error:
                raise
            notify(str(error))
        finally:
            self._jobs.clear()
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            self._copies.free()


def _write(checkpoint: dict[str, Any], event: torch.cuda.Event | None, path: Path) -> None:
    if event is not None:
        event.synchronize()
    write_checkpoint(checkpoint, path)


def _remove_after(write: "Future[None]", path: Path) -> None:
    if write.exception() is None:
        path.unlink(missing_ok=True)


class BackgroundCheckpoints(Callback):
    """Writes checkpoints in the background during training, and waits for the last one at the end.

    Logs ``train/checkpoint_wait_s`` after each epoch: the seconds for which training has waited for checkpoints since
    the end of the epoch before.

    Args:
        interruption: The signals of this process. Waiting for a file has no time limit after a signal.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption
        self._counted_s: Seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write in the background from now on."""
        checkpoint_io(trainer).in_background = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if a file could not be written."""
        checkpoint_io(trainer).check()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how long training has waited."""
        waited_s = checkpoint_io(trainer).waited_s
        pl_module.log("train/checkpoint_wait_s", waited_s - self._counted_s)
        self._counted_s = waited_s

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last file on all ranks, which read it next."""
        checkpoint_io(trainer).in_background = False
        with self.interruption.unlimited():
            finish_checkpoints(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Wait for the last file. If it cannot be written, its error is printed after the exception."""
        with self.interruption.unlimited():
            checkpoint_io(trainer).teardown()


def checkpoint_io(trainer: L.Trainer) -> BackgroundCheckpointIO:
    """How a trainer reads and writes checkpoints."""
    found = trainer.strategy.checkpoint_io
    assert isinstance(found, BackgroundCheckpointIO)
    return found


def finish_checkpoints(trainer: L.Trainer) -> None:
    """Wait on all ranks until the last checkpoint is on the disk.

    Raises:
        CheckpointError: It could not be written.
    """
    checkpoint_io(trainer).wait()
    trainer.strategy.barrier("checkpoints")
