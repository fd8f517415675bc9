"""Folders that are written beside their place, and take it when they are complete."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Libraries that write weights fail with errors of their own. Less free space than this is taken as the cause.
_FULL = 1_000_000


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` at the end of the block, and only without an error.

    Raises:
        OSError: The disk is full, whatever error a library has for it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    # What a killed process left. The command has the lock on the output.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        take_place(partial, folder)
    except Exception as error:
        if shutil.disk_usage(folder.parent).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def take_place(made: Path, folder: Path) -> None:
    """Rename a folder to a name that an earlier export may have. The earlier one is gone only after that."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    made.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Give files the permissions of new files. safetensors lets only their owner read them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        path.chmod(0o666 & ~mask)
