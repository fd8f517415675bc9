"""Checkpoint files: written whole, verified when read, and the one that a run continues from.

write  .best.ckpt.PID.partial -> digest at its end -> flush, fsync -> rename to best.ckpt
read   compare the digest, load with weights_only=True

The file is the ZIP archive that `torch.save` writes, and the archive's comment is its SHA-256:

    | ZIP archive of torch | length of the comment | comment: "ssl_asr sha256 " and 64 hexadecimal digits |
    |<----------- what the digest covers ---------->|

So the digest cannot be lost apart from the file, and every changed byte is found.
"""

import errno
import hashlib
import os
import pickle
import shutil
import struct
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

import torch

from ssl_asr.config.run_folder import AUTO, is_first, resumes
from ssl_asr.console import notify
from ssl_asr.errors import CheckpointError
from ssl_asr.textfiles import sync_folder

FORMAT = 3
KEY = "ssl_asr"
_MARK = b"ssl_asr sha256 "
_COMMENT_BYTES = len(_MARK) + 64
# Ends of a run write these weights. They belong to no single update, so training cannot continue from them.
_NOT_RESUMABLE = ("average.ckpt",)


class _Counted:
    """A file that counts the bytes that are written, and goes on counting after an error.

    `torch.save` turns an error of the file system into another one, which names neither the reason nor the size.
    """

    def __init__(self, file: BufferedRandom) -> None:
        self._file = file
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        self.count += size
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint. A crash leaves either the old file or the new one, never a partial file.

    Raises:
        CheckpointError: The file cannot be written, for example because the disk is full. Names the number of bytes
            that are needed and the last checkpoint that there is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w+b") as file:
            counted = _Counted(file)
            torch.save(checkpoint, counted)  # type: ignore[arg-type]
            size = counted.count + _COMMENT_BYTES
            if counted.error is not None:
                raise counted.error
            _add_digest(file)
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, size, error) from None
    finally:
        # Unlinking needs no room, but fails where the folder is gone.
        if partial.exists():
            partial.unlink()


def _add_digest(file: BufferedRandom) -> None:
    """Make the digest of an archive without a comment its comment."""
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _COMMENT_BYTES))
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(_MARK + digest.encode())
    file.flush()


def _not_written(path: Path, size: int, error: OSError) -> CheckpointError:
    """The error for a checkpoint that cannot be written."""
    what = f"cannot be written: {error.strerror or error}"
    remedy = "check the folder and its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what += f". It needs {size:,} bytes, and {shutil.disk_usage(path.parent).free:,} are free"
        remedy = "make room"
    kept = [path] if path.is_file() else sorted(path.parent.glob("*.ckpt"), key=lambda each: each.stat().st_mtime)
    earlier = f"The earlier checkpoint {kept[-1]} is kept" if kept else "There is no earlier checkpoint"
    return CheckpointError(str(path), f"{what}. {earlier}", f"{remedy}, and continue with resume=auto")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint and compare its digest. Only plain types are loaded.

    Raises:
        CheckpointError: The file is missing, damaged, or was not written by this version of ssl_asr.
    """
    checkpoint = read_undamaged(path)
    if checkpoint.get(KEY, {}).get("format") != FORMAT:
        raise CheckpointError(str(path), "was not written by this version of ssl_asr")
    return checkpoint


def read_undamaged(path: Path) -> dict[str, Any]:
    """Read a file of `write_checkpoint` and compare its digest. It may hold something else than a run's checkpoint.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if path.is_dir():
        raise CheckpointError(str(path), "is a folder", f"give a file, as {path / 'checkpoints' / 'last.ckpt'}")
    if not path.is_file():
        raise CheckpointError(str(path), "no such checkpoint", _instead_of(path))
    try:
        verified = _is_verified(path)
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read: {error.strerror}") from None
    if verified is False:
        raise CheckpointError(str(path), "is damaged: its content does not match its sha256", "use another checkpoint")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types for damaged files
        remedy = "it may be cut off; use another checkpoint"
        raise CheckpointError(str(path), f"cannot be read: {_why(path, error)}", remedy) from None
    if not isinstance(checkpoint, dict) or (KEY not in checkpoint and verified is None):
        raise CheckpointError(str(path), "was not written by this version of ssl_asr")
    if verified is None:
        raise CheckpointError(str(path), "is damaged: its sha256 is missing at its end", "use another checkpoint")
    return checkpoint


def _instead_of(path: Path) -> str:
    """What to do if a checkpoint is missing."""
    others = sorted(path.parent.glob("*.ckpt"), key=lambda each: each.stat().st_mtime)
    return f"use {others[-1]}, which is the newest in its folder" if others else "check the path"


def _why(path: Path, error: Exception) -> str:
    """Why torch cannot load a file."""
    if path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, pickle.UnpicklingError):
        # torch gives advice on files that are checkpoints.
        return "it is not a checkpoint, or holds more than weights and plain data"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_verified(path: Path) -> bool | None:
    """Whether a file matches the digest at its end, or None if there is no digest."""
    with path.open("rb") as file:
        rest = max(0, os.fstat(file.fileno()).st_size - _COMMENT_BYTES)
        file.seek(rest)
        comment = file.read()
        if not comment.startswith(_MARK):
            return None
        file.seek(0)
        digest = hashlib.sha256()
        while rest > 0 and (block := file.read(min(rest, 1 << 20))):
            digest.update(block)
            rest -= len(block)
    return comment == _MARK + digest.hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint that a run continues from.

    Attributes:
        path: The file.
        checkpoint: Its content.
    """

    path: Path
    checkpoint: dict[str, Any]

    @property
    def updates(self) -> int:
        """Number of updates that were made."""
        return int(self.checkpoint["global_step"])


def checkpoint_to_resume(resume: str | None, folder: Path) -> Resumed | None:
    """The checkpoint that a run continues from, or None for a new run.

    With ``auto``, a run continues from ``last.ckpt``. If that file is damaged, it continues from the undamaged
    checkpoint with the most updates, and a warning names both.

    Args:
        resume: Path of a checkpoint, ``auto``, or None. A job that Slurm started again continues as by ``auto``.
        folder: Folder of the run.

    Raises:
        CheckpointError: The named checkpoint cannot be used, or with ``auto`` none of the folder's checkpoints can.
    """
    if resumes(resume) == AUTO:
        found = _newest(folder)
        if found is not None or resume == AUTO:
            return found
    return None if resume is None else Resumed(Path(resume), read_checkpoint(Path(resume)))


def _newest(folder: Path) -> Resumed | None:
    """The checkpoint that ``auto`` continues from, or None."""
    last = folder / "checkpoints" / "last.ckpt"
    faults: list[CheckpointError] = []
    if last.is_file():
        try:
            return Resumed(last, read_checkpoint(last))
        except CheckpointError as fault:
            faults.append(fault)
    good: list[Resumed] = []
    for path in sorted(last.parent.glob("*.ckpt")):
        if path == last or path.name in _NOT_RESUMABLE:
            continue
        try:
            good.append(Resumed(path, read_checkpoint(path)))
        except CheckpointError as fault:
            faults.append(fault)
    best = max(good, key=lambda each: each.updates, default=None)
    return _fallen_back(best, faults)


def _fallen_back(found: Resumed | None, faults: list[CheckpointError]) -> Resumed | None:
    """What is found besides ``last.ckpt``. A warning names checkpoints that cannot be used."""
    seen = " ".join(map(str, faults))
    if found is None and faults:
        remedy = "start a new run in another run_dir"
        raise CheckpointError("resume", f"auto found no checkpoint that can be used. {seen}", remedy)
    if found is not None and faults and is_first():
        notify(f"{seen} The run continues from {found.path}, after update {found.updates}.")
    return found
