"""Rows of the table, and how two sides are measured: in turns, in one process."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
import transformers

from tests.gpu.steps import Setup

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        id: Number of the benchmark, ``B1`` to ``B25``, ``P1`` or ``P2``.
        what: What is compared.
        peer: The other side.
        ours, theirs: The figures of both sides, with ``unit``.
        ratio: How many times better ours is.
        spread: Smallest and largest ratio of a pair of turns. None for figures that do not vary.
        check: What was compared for equality, and the result.
    """

    id: str
    what: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    spread: tuple[float, float] | None
    check: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a run.

    Attributes:
        pairs: Number of turns of each side.
        quick: Whether shapes are small, which checks that everything runs.
    """

    pairs: int
    quick: bool


def run_alone(part: Callable[[Options], list[Row]], options: Options) -> list[Row]:
    """Runs a part in a process of its own, because our commands let a process keep the memory that it frees."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_run, part, options).result()


def _run(part: Callable[[Options], list[Row]], options: Options) -> list[Row]:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return part(options)


def cpu_setup(options: Options) -> Setup:
    """Models on the CPU in float32. Their shapes are tiny with ``quick``."""
    return Setup(device="cpu", tiny=options.quick, bf16=False)


def in_turns(ours: Step, theirs: Step, pairs: int) -> tuple[float, float, float, tuple[float, float]]:
    """Median seconds of both sides, and the median and range of their ratio, after one turn that does not count."""
    taken: list[tuple[float, float]] = []
    for number in range(pairs + 1):
        # The order changes, so that neither side always follows the other.
        first, second = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        seconds = [_seconds(first), _seconds(second)]
        if number > 0:
            taken.append((seconds[0], seconds[1]) if number % 2 == 0 else (seconds[1], seconds[0]))
    ratios = [theirs_s / ours_s for ours_s, theirs_s in taken]
    ours_s, theirs_s = (statistics.median(side) for side in zip(*taken, strict=True))
    return ours_s, theirs_s, statistics.median(ratios), (min(ratios), max(ratios))


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def timed(options: Options, row_id: str, what: str, peer: str, ours: Step, theirs: Step, *, check: str) -> Row:
    """A row of milliseconds."""
    ours_s, theirs_s, ratio, spread = in_turns(ours, theirs, options.pairs)
    figures = {"ours": 1000 * ours_s, "theirs": 1000 * theirs_s, "unit": "ms", "ratio": ratio, "spread": spread}
    return Row(id=row_id, what=what, peer=peer, check=check, **figures)


def saved_mb(forward: Step) -> float:
    """Megabytes of the tensors that a forward pass keeps for its backward pass. Parameters do not count."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The result is kept until the end: memory that is freed would be used again, and counted once.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(seen.values()) / 1e6


def closeness(name: str, ours: torch.Tensor, theirs: torch.Tensor, *, limit: float) -> str:
    """The largest difference of two results.

    Raises:
        AssertionError: It exceeds ``limit``.
    """
    difference = float((ours.detach().double() - theirs.detach().double()).abs().max())
    assert difference <= limit, f"{name} differs by {difference}"
    return f"{name} differs by {difference:.1e}"
