"""Work on the lines of large manifests in several processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

# Starting processes takes longer than going through fewer lines.
_FEWEST = 50_000
_RANGE = 1_000
# The work of the forked processes, which inherit it: a function that is defined in another one cannot be pickled.
_work: Callable[[int, int], Any] | None = None


def ranges_of(count: int) -> list[tuple[int, int]]:
    """Consecutive ranges, each its first index and its end, that cover ``count`` items."""
    return [(start, min(start + _RANGE, count)) for start in range(0, count, _RANGE)]


def map_ranges(work: Callable[[int, int], Result], ranges: Sequence[tuple[int, int]]) -> Iterator[Result]:
    """Results of ``work(start, end)`` for consecutive ranges, in order.

    Many ranges are divided among forked processes, one for each CPU. Where processes cannot be forked, and for few
    ranges, all work is done in this process.

    Args:
        work: A function of the first index and the end of a range. Its result must be picklable, and so must its
            errors, which are raised here.
        ranges: See `ranges_of`.
    """
    global _work
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if len(ranges) * _RANGE < _FEWEST or cpus < 2:
        yield from (work(*bounds) for bounds in ranges)
        return
    _work = work
    try:
        with ProcessPoolExecutor(cpus, mp_context=multiprocessing.get_context("fork")) as pool:
            yield from pool.map(_do, ranges)
    finally:
        _work = None


def _do(bounds: tuple[int, int]) -> Any:
    assert _work is not None
    return _work(*bounds)


def leave_signals_to_the_main_process(_worker: int) -> None:
    """Let a worker go on when a signal is sent to all processes of a run. The main process ends it when it stops.

    The main process does so by SIGTERM too, if the worker does not end by itself. So only the first one is ignored.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
