"""Memory: peak usage of the process, reuse of freed memory by glibc, and the tensors that operations make."""

import ctypes
import os
import platform
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory instead of returning it to the system.

    By default, large tensors are mapped again at every step, and the system clears each new page. For Whisper tiny on
    30 s windows, this takes a seventh of a step's CPU time. In exchange, the process keeps its peak memory.

    Returns:
        True on success, False if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> bool:
    """Returns freed memory to the system, whatever `keep_freed_memory` said. Takes milliseconds.

    A server that keeps what it frees grows for hours: batches of many sizes and threads leave gaps of all sizes.

    Returns:
        True on success, False if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def peak_gb(device: torch.device) -> float | None:
    """Returns the peak memory in GB (10^9 bytes).

    On a CUDA device, this is the peak of allocated memory. On the CPU, it is the peak of the process's resident memory.
    Returns None for other devices, and on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type != "cpu" or platform.system() == "Windows":
        return None
    import resource

    # Bytes on macOS, KiB elsewhere.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def total_bytes(device: torch.device) -> int | None:
    """Memory of a CUDA device, or of the machine for the CPU. None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(device: torch.device) -> int | None:
    """Memory that new tensors can have: on the CPU, what Linux says is available. None if it is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or platform.system() != "Linux":
        return None
    with Path("/proc/meminfo").open() as file:
        found = next((line for line in file if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024


_ATEN = torch.ops.aten
# Operations that take most of the time of a step.
_HEAVY = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN.convolution.default,
    _ATEN.convolution_backward.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


def _uncomputed(func: Any, args: Any, kwargs: Any) -> Any:
    """Results of an operation with the right shapes and arbitrary values."""
    device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))

    def empty_like(tensor: Tensor, device: torch.device) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    args, kwargs = tree_map_only(Tensor, lambda tensor: empty_like(tensor, torch.device("meta")), (args, kwargs))
    return tree_map_only(Tensor, lambda tensor: empty_like(tensor, device), func(*args, **kwargs))


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of the tensors that are made in this context, on any device.

    Counts the storages of all results of operations until they are freed. Workspaces inside of kernels are not counted.

    Args:
        existing: Tensors that are not counted, such as parameters.
        limit: Bytes above which an operation raises `torch.OutOfMemoryError`. Default: None (no limit).
        computes: Whether matrix products, convolutions and attention are computed. If not, their results have arbitrary
            values, in a fraction of the time. Default: True.

    Attributes:
        now: Bytes at present.
        timeline: Bytes after each operation.
    """

    def __init__(self, existing: Iterable[Tensor], limit: int | None = None, *, computes: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.timeline: list[int] = []
        self._limit, self._computes = limit, computes
        # Held, so that no new storage gets the address of one of them.
        self._existing = {tensor.untyped_storage()._cdata: tensor for tensor in existing}
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its results."""
        skips = not self._computes and func in _HEAVY
        out = _uncomputed(func, args, kwargs or {}) if skips else func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.timeline.append(self.now)
        if self._limit is not None and self.now > self._limit:
            what = f"{self.now:,} bytes of tensors are more than the {self._limit:,} bytes that are allowed"
            raise torch.OutOfMemoryError(what)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._alive or place in self._existing:
            return
        self._alive.add(place)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size
