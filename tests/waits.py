"""Operations that wait for a GPU, found on a CPU."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations and methods that wait for a GPU, if their tensor is on a GPU.
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2")
_METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
# Indexing by a mask finds its rows on the host, and so does repeating by a tensor of unknown sum.
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in _INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "repeat_interleave":
        return any(isinstance(one, Tensor) for one in args[-1:]) and kwargs.get("output_size") is None
    return name in _WAITING


class _Watch(TorchDispatchMode):
    def __init__(self, found: Callable[[str], None]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if _waits(name, args, kwargs or {}):
            self._found(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def _watching(found: Callable[[str], None]) -> Iterator[None]:
    def watched(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def method(*given: Any, **named: Any) -> Any:
            found(f"Tensor.{name}")
            return original(*given, **named)

        return method

    with patch.multiple(Tensor, **{name: watched(name) for name in _METHODS}), _Watch(found):
        yield


@contextmanager
def no_waits() -> Iterator[None]:
    """Fail where the host would wait for a GPU."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} waits for the GPU")

    with _watching(refuse):
        yield


@contextmanager
def count_waits() -> Iterator[Counter[str]]:
    """Counts what would wait for a GPU, by the name of the operation or method."""
    found: Counter[str] = Counter()
    with _watching(lambda name: found.update([name])):
        yield found


class OnDevice(TorchDispatchMode):
    """Follows the tensors that would be on a GPU, and counts operations that wait for their values.

    `count_waits` finds every look at a value. This finds those at values that are computed from ``tensors``, so other
    tensors, such as lengths, may be looked at.

    Args:
        tensors: Those that would be on the GPU.
        refuse: Whether a wait is an error.

    Attributes:
        waits: Number of waits by the name of the operation.
        seen: Number of operations on the device.
    """

    def __init__(self, tensors: Iterable[Tensor], *, refuse: bool = True) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.seen = 0
        self._refuse = refuse
        self._storages: dict[int, torch.UntypedStorage] = {}
        for tensor in tensors:
            self._mark(tensor)

    def _mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # The reference keeps its address from being used again.
        self._storages[storage.data_ptr()] = storage

    def _is_on_device(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        on_device = any(map(self._is_on_device, flat))
        name = func._schema.name.removeprefix("aten::")
        masks = name in _INDEXING and any(self._is_on_device(one) and one.dtype == torch.bool for one in flat[1:])
        if on_device and (name in _WAITING or masks):
            assert not self._refuse, f"{name} waits for the device"
            self.waits[name] += 1
        out = func(*args, **(kwargs or {}))
        self.seen += on_device
        if on_device:
            for one in torch.utils._pytree.tree_leaves(out):
                if isinstance(one, Tensor) and one.numel() > 0:
                    self._mark(one)
        return out
