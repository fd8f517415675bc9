"""`torch.compile` for transformer layers.

The layers of a stack have the same shapes, so torch compiles one layer and reuses it. Weight names do not change.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ssl_asr.errors import ConfigError


@runtime_checkable
class Compilable(Protocol):
    """A module with a stack of layers that can be compiled, such as a `SpeechEncoder` or a `TransformerDecoder`."""

    def compile_layers(self, backend: str) -> None:
        """Compiles the layers in place, for inputs of any length."""


def compile_layers(model: nn.Module, backend: str) -> int:
    """Compiles the layers of every `Compilable` module in a model.

    Args:
        model: nn.Module, changed in place.
        backend: str, name of a `torch.compile` backend.

    Returns:
        The number of layer stacks.

    Raises:
        ConfigError: torch has no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        what = f"no backend '{backend}', allowed are {', '.join(known)}"
        raise ConfigError("trainer.compile", what)
    stacks = [module for module in model.modules() if isinstance(module, Compilable)]
    for stack in stacks:
        stack.compile_layers(backend)
    return len(stacks)
