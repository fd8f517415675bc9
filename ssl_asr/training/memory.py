"""Memory of a process that computes: how much it took, and keeping it on the CPU."""

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next allocation instead of giving it back to the system.

    Large tensors are otherwise mapped anew at every step, and the system clears each page of them first: a
    seventh of the processor time of a step of Whisper tiny on 30-s windows. The process stays at its peak.

    Returns:
        Whether this C library can do so; others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def peak_gb(device: torch.device) -> float | None:
    """The most memory so far, in GB: allocated on a GPU, resident in this process on a CPU; None if nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type != "cpu" or platform.system() == "Windows":
        return None
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
