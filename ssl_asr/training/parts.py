"""Tensors that may be sharded over ranks."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether this rank holds only a part of a tensor, and other ranks the rest."""
    return isinstance(value, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor. If it is sharded, every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor. Changes in place change the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def sharded_like(own: object, value: Any) -> Any:
    """A whole tensor, sharded as ``own`` is if that is sharded. No other value is changed."""
    if not is_sharded(own) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    # Every rank has the whole tensor, so nothing is sent.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def load_whole(module: nn.Module, weights: Mapping[str, Any], *, strict: bool = True) -> None:
    """Load whole weights into a module whose parameters may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(own.get(name), value) for name, value in weights.items()}, strict=strict)
