"""What the worker processes of a loader do when they start, and how they end."""

import atexit
import gc
import multiprocessing.queues
import os
import signal
import sys
from typing import Any, NoReturn


def prepare_worker(_worker: int) -> None:
    """Let a worker go on when a signal is sent to all processes of a run. The main process ends it when it stops.

    The loader does so by SIGTERM too, if the worker does not end by itself. So only the first one is ignored.

    A worker that cannot send a batch, because shared memory is full or too many files are open, ends. By default,
    Python prints the error and drops the batch, and the main process waits for it without end.
    """
    # Garbage collection would write to, and so copy, the memory of all objects that a worker inherits.
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_end_worker)


def _end_worker(error: BaseException, _batch: object) -> NoReturn:
    print(f"error: a loader worker cannot send a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@atexit.register
def end_workers() -> None:
    """Kill the workers of loaders that an error has left, when the main process ends.

    Python sends each of them one SIGTERM, and waits for it without end.
    """
    if hasattr(signal, "SIGCHLD"):
        # Torch's handler would raise an error for each of them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
