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


def machine_bytes() -> int | None:
    """Memory of the machine, or of the control groups of this process if it is less. None if it is unknown."""
    if not hasattr(os, "sysconf"):
        return None
    limits = [limit for limit, _ in group_limits()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def available_bytes(device: torch.device) -> int | None:
    """Memory that new tensors can have. None if it is unknown.

    On the CPU, this is what Linux says is available, or what the control groups of this process have left if it is
    less. Docker and Slurm limit the memory of a job by control groups.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or platform.system() != "Linux":
        return None
    with Path("/proc/meminfo").open() as file:
        found = next((line for line in file if line.startswith("MemAvailable:")), None)
    left = [max(0, limit - used) for limit, used in group_limits()]
    return None if found is None else min([int(found.split()[1]) * 1024, *left])


# Version 1 of control groups says so where there is no limit.
_UNLIMITED = 2**60
# Names of the files of a group with the limit and the use, and the key of `memory.stat` for the part of the use that
# is copies of files, which the system frees when memory is needed.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group_limits(root: Path = Path("/")) -> list[tuple[int, int]]:
    """Limit and use of memory in bytes, of each Linux control group of this process that has a limit.

    A group is inside of others, whose limits hold for it too. In a container, the path of a group can be that on the
    host, and only the outermost folder exists.

    Args:
        root: Folder that has ``proc`` and ``sys``. Default: ``/``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in _GROUP_FILES:
            continue
        mount, own = root / "sys/fs/cgroup" / kind, Path(path.lstrip("/"))
        found += [_group_limit(mount / folder, *_GROUP_FILES[kind]) for folder in (own, *own.parents)]
    return [one for one in dict.fromkeys(found) if one is not None]


def _group_limit(folder: Path, limit_name: str, use_name: str, file_key: str) -> tuple[int, int] | None:
    """Limit and use of one group. None if it has no limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        use = int((folder / use_name).read_text())
        figures = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit), use - int(figures.get(file_key, 0))
    except (OSError, ValueError):
        return None


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
