"""Weights in 16 bits, for inference, and for training that keeps float32 masters of them."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of a module in place.

    Buffers and batch norms keep float32. Buffers hold the windows and filters of spectrograms, whose results lose all
    digits in 16 bits. Statistics of a batch norm scale every frame by the same rounding error.

    Args:
        module: nn.Module. An optimizer that updates its weights needs `ssl_asr.training.masters.MasterWeights`.
        dtype: torch.dtype, float32, bfloat16 or float16.
    """
    for part in module.modules():
        if not isinstance(part, _BatchNorm):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
