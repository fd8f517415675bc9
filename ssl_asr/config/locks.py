"""Locks on folders and outputs, so that two commands do not write the same files.

The operating system holds the lock (``flock``, by filelock), and gives it up when the process ends, however it ends. A
file beside it says who holds it. On file systems without ``flock``, filelock uses a file that names its process.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ssl_asr.console import notify
from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import written_whole

# Workers of a process that was killed keep its lock until they notice, which takes them up to 5 s.
_WORKERS_END_S = 10.0
# Numbers of processes are smaller on every system.
_MOST_PROCESSES = 2**31


@dataclass(frozen=True, slots=True)
class Lock:
    """What a command keeps other commands from writing.

    Attributes:
        path: The lock file.
        key: Config key that names the folder or output, for the error.
        what: The folder or output, for the error.
    """

    path: Path
    key: str
    what: str

    @classmethod
    def of_folder(cls, folder: Path, key: str) -> "Lock":
        """The lock of a folder of results, which has the lock file."""
        return cls(folder / ".lock", key, str(folder))

    @classmethod
    def of_output(cls, output: Path, key: str = "output") -> "Lock":
        """The lock of a file or folder of transcripts. The lock file is beside it, since it may not exist yet."""
        whole = output.resolve()
        return cls(whole.with_name(f".{whole.name}.lock"), key, str(output))


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold a lock in the block. Its files are removed at the end, and folders that were created for them if empty.

    Raises:
        ConfigError: Another process holds the lock. Names its host, its number, its command and when it started.
    """
    created = [folder for folder in lock.path.parents if not folder.exists()]
    note = _note(lock.path)
    file = FileLock(lock.path)
    try:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(file, lock)
    except PermissionError:
        # The command says what cannot be written.
        yield
        return
    except OSError as error:
        notify(f"{lock.what}: cannot be locked ({error.strerror}). Start no other command that writes there")
        yield
        return
    try:
        with written_whole(note) as text:
            json.dump(_holder(), text)
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.path.unlink(missing_ok=True)
        file.release()
        with suppress(OSError):
            for folder in created:
                folder.rmdir()


def in_use(lock: Lock) -> Iterator[ConfigError]:
    """An error if another process holds a lock. Creates no file."""
    if not lock.path.is_file():
        return
    file = FileLock(lock.path)
    try:
        _acquire(file, lock)
    except ConfigError as error:
        yield error
    except OSError:
        # `held` says that there is no lock here.
        return
    else:
        file.release()


def _acquire(file: FileLock, lock: Lock) -> None:
    """Take a lock at once, or after the workers of a process that has ended."""
    for timeout in (0.0, _WORKERS_END_S):
        with suppress(Timeout):
            file.acquire(timeout=timeout)
            return
        holder = _read(_note(lock.path))
        if holder is not None and not _has_ended(holder):
            break
    remedy = f"wait until it ends, or choose another {lock.key}"
    raise ConfigError(lock.key, f"{lock.what} is in use{_by(holder)}", remedy)


def _holder() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv),
    }


def _by(holder: dict[str, str | int] | None) -> str:
    if holder is None:
        return ""
    return f" by process {holder['pid']} on {holder['host']} since {holder['since']}: {holder['command']}"


def _has_ended(holder: dict[str, str | int]) -> bool:
    """Whether the process is one of this host and has ended."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read(note: Path) -> dict[str, str | int] | None:
    """Who holds a lock, or None if that is not written yet."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        holder = {key: found[key] for key in ("host", "pid", "since", "command")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return holder if type(holder["pid"]) is int and 0 < holder["pid"] < _MOST_PROCESSES else None
