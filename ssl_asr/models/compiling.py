"""torch.compile, one transformer layer at a time.

All layers of a stack share their shapes, so one is compiled and serves for all; names of weights stay as they are.
"""

from typing import Any

import torch
from torch import nn

from ssl_asr.errors import ConfigError
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.transformer import TransformerDecoder
from ssl_asr.models.whisper import WhisperEncoder


def compile_layers(model: nn.Module, backend: str) -> int:
    """Compile the layers of every encoder and transformer decoder within a model, for lengths of any size.

    Returns:
        How many stacks of layers were found.

    Raises:
        ConfigError: torch knows no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError("trainer.compile", f"no backend '{backend}'", f"known: {', '.join(known)}")
    stacks = 0
    for module in model.modules():
        part: Any = module
        if isinstance(part, SSLEncoder):
            for layer in part.net.encoder.layers:
                layer.compile(backend=backend, dynamic=True)
            stacks += 1
        elif isinstance(part, WhisperEncoder | TransformerDecoder):
            setattr(part, "_layer", torch.compile(part._layer, backend=backend, dynamic=True))  # noqa: B010
            stacks += 1
    return stacks
