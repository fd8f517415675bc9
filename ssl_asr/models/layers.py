"""Stacks of transformer layers whose layers can be sharded one by one."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Layered(Protocol):
    """A module with a stack of layers, which training computes one after the other."""

    def separate_layers(self) -> Iterable[tuple[nn.Module, str | None]]:
        """Yields each layer, and the name of the method by which training computes it; None if the layer is called.

        A layer that was computed by a function of its weights is computed by such a method from then on.
        """


def with_methods(layers: Iterable[nn.Module], compute: Callable[..., Tensor]) -> Iterator[tuple[nn.Module, str | None]]:
    """Gives each layer a method ``compute_layer(*inputs)`` for ``compute(layer, *inputs)``. See `Layered`."""
    for layer in layers:
        setattr(layer, "compute_layer", partial(compute, layer))  # noqa: B010
        yield layer, "compute_layer"


def by_method(layer: Any, *inputs: object) -> Tensor:
    """Computes a layer by the method that `with_methods` gave it."""
    states: Tensor = layer.compute_layer(*inputs)
    return states
