"""What a command says, and the code that it returns, when a signal stops it.

    SIGINT   KeyboardInterrupt    130
    SIGTERM  SystemExit           143

Both stop a command where it is, so that files which are being written are removed. Lightning turns them into other
ways to exit, so the signal itself is remembered.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GoOn = Callable[[str], None]
"""Takes what to do to go on after an interruption."""

_FROM_START = "the same command starts from the beginning"


def how_to_go_on(name: str, folder: str | None, output: str | None) -> str:
    """What to do after a command was interrupted.

    Args:
        name: Name of the command.
        folder: Folder of a training run. None in a sweep.
        output: Where transcripts are written.

    Example:
        >>> how_to_go_on("train", "runs/a", None)
        'to continue from the last checkpoint, add resume=auto run_dir=runs/a to the command'
    """
    if name == "train" and folder is not None:
        added = shlex.join(["resume=auto", f"run_dir={folder}"])
        return f"to continue from the last checkpoint, add {added} to the command"
    if name == "extract" or (name == "transcribe" and output is not None):
        return "the same command again continues with what is left"
    if name == "transcribe":
        return f"{_FROM_START}. With output=FILE, it continues"
    return _FROM_START


@contextmanager
def interruptible() -> Iterator[GoOn]:
    """Say in one line how to go on if a signal stops the block, and exit with 128 and the number of the signal.

    Yields a function that takes what to do, once it is known.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    caught = _Caught()
    caught.listen()
    try:
        yield caught.advise
    except (KeyboardInterrupt, SystemExit):
        if caught.signal is None:
            raise
        caught.say()
        sys.exit(128 + caught.signal)


class _Caught:
    """The signal that stopped a command, and what to do then."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._advice = _FROM_START
        self._process = os.getpid()

    def advise(self, advice: str) -> None:
        """Take what to do."""
        self._advice = advice

    def listen(self) -> None:
        """Handle both signals, except one that is ignored, as in the background of a shell."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def say(self) -> None:
        """Print the line. Further processes of a run, which Lightning starts, print nothing."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"interrupted: {self._advice}.", file=sys.stderr)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker process, which has this handler from the process that started it.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if "SLURM_JOB_ID" in os.environ and signal.getsignal(number) != self._stop:
            # Lightning may be putting the job in the queue again. It stops after the batch.
            return
        raise SystemExit(128 + number)
