"""What a command does when a signal stops it, what it says, and the code that it returns.

    SIGINT    KeyboardInterrupt    130
    SIGTERM   SystemExit           143
    SIGUSR1   SystemExit           143, and a job of Slurm is put in the queue again

These stop a command where it is, so that files which are being written are removed. In a block of
`Interruption.deferred`, SIGTERM and SIGUSR1 are only noted: training writes a checkpoint after the next update and
stops then. A second signal ends the process at once, and so do 30 s in which no step is finished.

A further rank of a run ends if the process that started it is gone: before the ranks have met, it would wait for it.

SIGUSR1 is what Slurm sends some time before the SIGTERM of a time limit (``--signal=USR1@120``), hence the same code.
"""

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import NoReturn

GoOn = Callable[[str], None]
"""Takes what to do to go on after an interruption."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_FROM_START = "the same command starts from the beginning"
# A process that does nothing for so long after a signal is ended.
_LONGEST_WAIT_S = 30.0
# A rank whose first process is gone may still finish what it does.
_ALONE_S = 10.0
# Number of the first process of a run, for the processes that Lightning starts.
_FIRST = "SSL_ASR_FIRST_PROCESS"
# Programs such as timeout send a signal to a process and then to its group. That is one signal.
_SAME_SIGNAL_S = 0.3


def how_to_go_on(name: str, folder: str | None, output: str | None) -> str:
    """What to do after a command was interrupted.

    Args:
        name: Name of the command.
        folder: Folder of a training run. None in a sweep.
        output: Where transcripts are written.

    Example:
        >>> how_to_go_on("train", "runs/a", None)
        'to continue from the last checkpoint, if one is saved yet, add resume=auto run_dir=runs/a to the command'
    """
    if name == "train" and folder is not None:
        added = shlex.join(["resume=auto", f"run_dir={folder}"])
        return f"to continue from the last checkpoint, if one is saved yet, add {added} to the command"
    if name == "serve":
        return "the server has stopped"
    if name == "extract" or (name == "transcribe" and output is not None):
        return "the same command again continues with what is left"
    if name == "transcribe":
        return f"{_FROM_START}. With output=FILE, it continues"
    return _FROM_START


@contextmanager
def interruptible() -> Iterator[GoOn]:
    """Say in one line how to go on if a signal stops the block, and exit with the code of the signal.

    Yields a function that takes what to do, once it is known.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    caught = Interruption()
    caught.listen()
    _CURRENT[:] = [caught]
    try:
        yield caught.advise
    except (KeyboardInterrupt, SystemExit) as way:
        if caught.signal is None:
            raise
        caught.say()
        # A process that Lightning started has agreed to stop, or stops its first process, which is no failure.
        agreed = caught.agreed and getattr(way, "code", None) == 0
        sys.exit(0 if agreed or (not caught.agreed and _passed_on(caught.signal)) else _code(caught.signal))


class Interruption:
    """The signal that stopped a command, and what to do then.

    Attributes:
        signal: Number of the signal, or None.
        agreed: Whether a block of `deferred` stopped by itself.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = self._said = False
        self._advice = _FROM_START
        self._process = os.getpid()
        self._deferred, self._interrupts = False, True
        self._since = self._moved = time.monotonic()
        self._unlimited = False
        self._ending = threading.Lock()

    def advise(self, advice: str) -> None:
        """Take what to do."""
        self._advice = advice

    def listen(self) -> None:
        """Handle the signals, except one that is ignored, as in the background of a shell."""
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)
        # Python calls handlers between its own instructions. A call that waits in C for another process, as ranks do,
        # never gets there, so a thread listens too.
        parent = None
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.environ[_FIRST] = str(os.getpid())
        else:
            parent = int(os.environ.get(_FIRST, os.getppid()))
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_do_not_listen)
        threading.Thread(target=self._watch, args=(reader, writer, parent), daemon=True, name="signals").start()

    @contextmanager
    def deferred(self, *, interrupts: bool = False) -> Iterator[None]:
        """Note SIGTERM and SIGUSR1 in the block, which looks at `signal` and calls `leave`.

        Args:
            interrupts: Note SIGINT too, in place of raising KeyboardInterrupt.
        """
        self._deferred, self._interrupts = True, not interrupts
        try:
            yield
        finally:
            self._deferred, self._interrupts = False, True
        if self.signal is not None:
            self.leave(self.signal)

    def moved(self) -> None:
        """The block has made a step, so that the time in which nothing moves starts again."""
        self._moved = time.monotonic()

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """A step of the block that may take longer than others, such as writing a checkpoint."""
        self._unlimited = True
        try:
            yield
        finally:
            self._unlimited = False
            self.moved()

    def leave(self, number: int, code: int | None = None) -> NoReturn:
        """Stop because of a signal, which may have been sent to another process of the run.

        Args:
            number: The signal.
            code: Exit code, or None for that of the signal.
        """
        self.signal, self.agreed = number, True
        raise SystemExit(_code(number) if code is None else code)

    def say(self) -> None:
        """Print the line, once. Further processes of a run, which Lightning or a launcher starts, print nothing."""
        if os.environ.get("LOCAL_RANK", "0") == "0" and not self._said:
            self._said = True
            queued = self.signal == signal.SIGUSR1 and _put_in_queue_again()
            more = " The job is in the queue again, and continues by itself." if queued else ""
            print(f"interrupted: {self._advice}.{more}", file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker process, which has this handler from the process that started it.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.signal is not None:
            if time.monotonic() - self._since > _SAME_SIGNAL_S:
                self.end()
            return
        self.signal, self._since = number, time.monotonic()
        self.moved()
        if number == signal.SIGINT and self._interrupts:
            raise KeyboardInterrupt
        if not self._deferred:
            raise SystemExit(_code(number))

    def end(self) -> NoReturn:
        """End the process at once, with the code of the signal."""
        assert self.signal is not None
        # A handler, and the thread that listens, may both come here. The first one ends the process.
        self._ending.acquire()
        self.say()
        os._exit(_code(self.signal))

    def _watch(self, reader: socket.socket, _writer: socket.socket, parent: int | None) -> None:
        """End the process at a second signal, if it does not move on after a first one, or without its parent."""
        first, since = None, 0.0
        last_seen = time.monotonic()
        while True:
            ready, _, _ = select.select([reader], [], [], None if first is None and parent is None else 1.0)
            now = time.monotonic()
            last_seen = now if parent is None or os.getppid() == parent else last_seen
            if now - last_seen > _ALONE_S and not self._unlimited:
                self.signal = self.signal or signal.SIGTERM
                self.end()
            numbers = [each for each in reader.recv(16) if each in _SIGNALS] if ready else []
            if first is None:
                if numbers:
                    first, since = numbers[0], now
                    self.moved()
                continue
            late = not self._unlimited and now - self._moved > _LONGEST_WAIT_S
            if late or (numbers and now - since > _SAME_SIGNAL_S):
                self.signal = first
                self.end()


_CURRENT: list[Interruption] = []


@contextmanager
def listening() -> Iterator[None]:
    """Handle signals as `interruptible` does, in a process that a launcher started for a job of a sweep."""
    with nullcontext() if _CURRENT else interruptible():
        yield


def current() -> Interruption:
    """What signals do in this process. In Python, outside a command, no signal reaches it."""
    return _CURRENT[0] if _CURRENT else Interruption()


def _do_not_listen() -> None:
    """In a process that was forked: its signals are its own."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _passed_on(number: int) -> bool:
    """Send a signal on to the first process. Lightning would kill it without a word if this one failed.

    Does nothing in processes that Lightning did not start, and for SIGINT, which reaches all processes of a terminal.
    """
    if (
        number == signal.SIGINT
        or os.environ.get("LOCAL_RANK", "0") == "0"
        or os.environ.get(_FIRST) != str(os.getppid())
    ):
        return False
    with suppress(OSError):
        os.kill(os.getppid(), number)
    return True


def _code(number: int) -> int:
    """The exit code for a signal. SIGUSR1 announces SIGTERM."""
    return 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def _put_in_queue_again() -> bool:
    """Put this job of Slurm in the queue again. Returns whether it is there."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"warning: job {job} is not in the queue again: {error}.", file=sys.stderr)
        return False
    return True
