"""Triton kernels without a GPU: interpreted in a child process, and compiled for a GPU without running them.

The interpreter needs a process where triton is imported after its switch.
"""

import io
import multiprocessing
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch


class Interpreter:
    """A child process whose triton kernels are interpreted. Call it with a function of a module and its arguments."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_prepare)

    def __call__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        sent = _packed((inputs, options))
        return _unpacked(self._pool.submit(partial(_call, function), sent).result(timeout=300))

    def stop(self) -> None:
        self._pool.shutdown()


def _packed(value: Any) -> bytes:
    """By torch's files, which keep strides. Shared memory is not available everywhere."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _call(function: Callable[..., Any], sent: bytes) -> bytes:
    inputs, options = _unpacked(sent)
    return _packed(function(*inputs, **options))


def _dot(builder: Any, dot: Any, interpreter: Any, a: Any, b: Any, *rest: Any) -> Any:
    import triton.language as tl

    if a.dtype.scalar == tl.bfloat16:
        a, b = (builder.cast_impl(x, tl.float32) for x in (a, b))
    return dot(builder, a, b, *rest)


def _prepare() -> None:
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime import interpreter

    def both() -> None:
        """A function that sees the two modules that are patched."""

    # Patch triton once. The interpreter does it, and undoes it, at every call of a function.
    both = types.FunctionType(both.__code__, {"tl": tl, "core": tl.core})
    interpreter._patch_lang(both)
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)
    # The interpreter's scalars are arrays of shape (1,), which numpy 2.4 no longer converts to integers.
    patch.object(tl.tensor, "__index__", lambda self: self.handle.data.item(), create=True).start()
    # Products of bfloat16, which numpy lacks. The interpreter multiplies its bits as integers.
    builder = interpreter.InterpreterBuilder
    builder.create_dot = partialmethod(_dot, builder.create_dot, interpreter)
    torch.set_num_threads(1)
    # Logarithms of zero, and differences of infinities in entries that are masked.
    np.seterr(all="ignore")


class Compiled:
    """The kernels that were compiled for an H200 while this was active. They were launched, and did not run.

    Args:
        patch: pytest's fixture, which ends the launches.
        folder: Where triton keeps what it compiles.
    """

    def __init__(self, patch: Any, folder: Path) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        # No device has this number, so that a real GPU gets kernels of its own.
        driver = SimpleNamespace(
            get_current_device=lambda: 99,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
        )
        run, self.kernels = triton.JITFunction.run, []

        def compile_only(function: Any, *inputs: Any, warmup: bool, **options: Any) -> None:
            self.kernels.append(run(function, *inputs, warmup=True, **options))

        patch.setattr(triton.runtime.driver, "_active", driver)
        patch.setattr(triton.JITFunction, "run", compile_only)
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        self._folder = folder

    @property
    def names(self) -> list[str]:
        """The kernels in the order of their launches."""
        return [kernel.metadata.name.removesuffix("_kernel") for kernel in self.kernels]

    def check(self) -> None:
        """Every kernel fits an H200, and has no atomics: nothing depends on the order of threads."""
        for kernel in self.kernels:
            assert len(kernel.asm["cubin"]) > 1000
            assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"])
            assert kernel.metadata.shared <= 227 * 1024

    def stack_bytes(self) -> list[int]:
        """Memory for registers that a thread of each kernel has too few of. Skips the test without CUDA's reader."""
        import triton

        reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if not reader.is_file():
            pytest.skip("triton came without cuobjdump, which lists the resources of a kernel")
        found = []
        for place, kernel in enumerate(self.kernels):
            path = self._folder / f"{place}.cubin"
            path.write_bytes(kernel.asm["cubin"])
            listed = subprocess.run([reader, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
            found += [int(size) for size in re.findall(r"STACK:(\d+)", listed.stdout)]
        return found
