"""Whether a Triton kernel runs on a device, and where it is launched. Importing this module does not need triton."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from ssl_asr.console import verified


def has_kernel(device: torch.device, agrees: Callable[[], bool], *, what: str, instead: str) -> bool:
    """Whether a Triton kernel runs on a device and agrees with the code that it replaces.

    A kernel needs triton, which CUDA builds of torch install on Linux, a C compiler, and a GPU that triton supports.
    A warning tells what is missing.

    Args:
        device: torch.device. False is returned if it is no NVIDIA or AMD GPU.
        agrees: Runs the kernel and the other code, and compares them. Compiles the kernel, so call this once.
        what: What the kernel computes, the start of the warning.
        instead: What is used instead, in the warning.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return verified(
        agrees,
        what=f"{what}: the Triton kernel does not run on {device}",
        instead=f"{instead} Check that a C compiler is installed and that triton supports the GPU.",
    )


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches kernels on the device of a tensor, which need not be the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
