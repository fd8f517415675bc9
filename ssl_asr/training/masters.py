"""Float32 masters of weights that compute in bfloat16: ``trainer.precision=bf16-true``.

    forward, backward    weight in bfloat16  ->  gradient, added up over a window of batches in float32
    update               master in float32   <-  optimizer(master, gradient)
    after the update     weight              <-  master, rounded to bfloat16
    checkpoint           master, in the place of the weight

An update in bfloat16 would be lost where it is smaller than 1/256 of the weight, as most updates of fine-tuning are.
Frozen weights have no master. Batch norms and buffers keep float32, see `ssl_asr.models.precision`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ssl_asr.errors import ConfigError
from ssl_asr.models.precision import cast_weights


class MasterWeights:
    """Casts the weights of a module to bfloat16, and lets its optimizers update float32 masters of them.

    Args:
        module: The module, with float32 weights.
        optimizers: Optimizers of the module, without states. Their parameters are replaced by the masters.
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                weights = list(group["params"])
                # A master has the memory of the weight, which `cast_weights` leaves to it.
                group["params"] = [nn.Parameter(weight.detach()) for weight in weights]
                self._masters |= zip(weights, group["params"], strict=True)
        cast_weights(module, torch.bfloat16)
        for weight in self._masters:
            weight.grad_dtype = torch.float32

    def take_gradients(self) -> None:
        """Move the gradients of the weights to the masters."""
        for weight, master in self._masters.items():
            master.grad, weight.grad = weight.grad, None

    @torch.no_grad()
    def round(self) -> None:
        """Set each weight to its master, rounded to bfloat16."""
        # Weights that keep float32 share the memory of their masters.
        cast = [(weight, master) for weight, master in self._masters.items() if weight.dtype != master.dtype]
        if cast:
            weights, masters = zip(*cast, strict=True)
            torch._foreach_copy_(list(weights), list(masters))

    def replace_in(self, state_dict: dict[str, Any], module: nn.Module) -> None:
        """Replace the weights in a state dict of the module by their masters."""
        for name, weight in module.named_parameters(remove_duplicate=False):
            if weight in self._masters:
                state_dict[name] = self._masters[weight].detach()


def check_measurable(*, bf16_weights: bool) -> None:
    """Refuse to measure the memory or time of a step with the wrong precision, outside of training.

    Raises:
        ConfigError: Weights will be in bfloat16 during training.
    """
    if bf16_weights:
        what = "is bf16-true, and steps outside of training are measured with float32 weights"
        remedy = "measure with trainer.precision=bf16-mixed, which needs no less memory, and give data.max_batch_s"
        raise ConfigError("trainer.precision", what, remedy)
