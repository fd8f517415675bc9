"""Work on the lines of large manifests in several processes."""

import gc
import multiprocessing
import os
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


def map_ranges(
    work: Callable[[int, int], Result], ranges: Sequence[tuple[int, int]], *, lines: int | None = None
) -> Iterator[Result]:
    """Results of ``work(start, end)`` for consecutive ranges, in order.

    Many lines are divided among forked processes, one for each CPU. Where processes cannot be forked, and for few
    lines, all work is done in this process.

    Args:
        work: A function of the first index and the end of a range. Its result must be picklable, and so must its
            errors, which are raised here.
        ranges: See `ranges_of`.
        lines: Number of lines, if the ranges are not ranges of lines. Default: None (that of the ranges).
    """
    global _work
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    lines = len(ranges) * _RANGE if lines is None else lines
    if lines < _FEWEST or len(ranges) < 2 or cpus < 2:
        yield from (work(*bounds) for bounds in ranges)
        return
    _work = work
    # Garbage collection in a process would write to, and so copy, the memory of all objects that it inherits.
    gc.freeze()
    try:
        with ProcessPoolExecutor(cpus, mp_context=multiprocessing.get_context("fork")) as pool:
            yield from pool.map(_do, ranges)
    finally:
        _work = None
        gc.unfreeze()


def _do(bounds: tuple[int, int]) -> Any:
    assert _work is not None
    return _work(*bounds)
