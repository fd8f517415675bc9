"""Triton kernels without a GPU: Triton's interpreter in a child process, where triton is imported after its switch."""

import io
import multiprocessing
import os
import sys
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
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
    torch.set_num_threads(1)
    # Logarithms of zero, and differences of infinities in entries that are masked.
    np.seterr(all="ignore")
