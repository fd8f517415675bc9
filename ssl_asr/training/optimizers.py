"""Optimizer options. Each side of the model (encoder, rest) has one optimizer over its layer groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ssl_asr.errors import ConfigError, optional_import
from ssl_asr.models.encoder import LayerGroup
from ssl_asr.types import Betas, Fraction, LayerDecay, NonNegativeFloat, PositiveFloat


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns all parameters that an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def layer_scales(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Returns the learning-rate factor of each group: ``layer_decay ** (number of groups above it)``.

    Args:
        names: Names of the groups, from the bottom up.
        layer_decay: float in (0, 1], factor between one group and the group above it.

    Example:
        >>> layer_scales(["feature_encoder", "layers.0", "layers.1"], 0.5)
        {'feature_encoder': 0.25, 'layers.0': 0.5, 'layers.1': 1.0}
    """
    return {name: layer_decay ** (len(names) - 1 - i) for i, name in enumerate(names)}


def group_scales(groups: Sequence[LayerGroup], layer_decay: float) -> dict[str, float]:
    """Returns the learning-rate factor of each group: its layer scale times its ``lr_scale``.

    Groups with an ``lr_scale`` other than 1 are outside the stack of layers: they have no layer scale.
    """
    layers = layer_scales([group.name for group in groups if group.lr_scale == 1.0], layer_decay)
    return {group.name: layers.get(group.name, 1.0) * group.lr_scale for group in groups}


def parameter_groups(
    groups: Sequence[LayerGroup], *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Returns the trainable parameters as ``param_groups`` of a torch optimizer.

    Parameters with the same learning rate and the same weight decay share a group.

    Args:
        groups: Layer groups, from the bottom up. Frozen parameters are left out.
        lr: float, learning rate of the top group.
        weight_decay: float, for matrices and convolution kernels. Vectors (norms, biases) have no weight decay.
        layer_decay: float in (0, 1], see `layer_scales`. 1 gives every group the same learning rate.

    Returns:
        Dicts with the keys ``params``, ``lr`` and ``weight_decay``. The first has the learning rate of the top group,
        which is the one that is logged.
    """
    scales = group_scales(groups, layer_decay)
    made: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for group in groups:
        for parameter in group.parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim >= 2 else 0.0
                made.setdefault((group.lr_scale != 1.0, lr * scales[group.name], decay), []).append(parameter)
    # The highest learning rate first, groups with an lr_scale last.
    ordered = sorted(made.items(), key=lambda item: (item[0][0], -item[0][1], -item[0][2]))
    return [{"params": params, "lr": rate, "weight_decay": decay} for (_, rate, decay), params in ordered]


def state_bytes(optimizer: Optimizer) -> int:
    """Size of the states that an optimizer has after an update. The parameters and the optimizer are not changed.

    For each shape of parameters, an optimizer of the same class updates a parameter of zeros.
    """
    sizes: dict[tuple[int, torch.Size, torch.dtype], int] = {}
    total = 0
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            key = (number, parameter.shape, parameter.dtype)
            if key not in sizes:
                alike = torch.zeros_like(parameter, requires_grad=True)
                alike.grad = torch.zeros_like(alike)
                twin = type(optimizer)([{**group, "params": [alike]}])  # type: ignore[call-arg]
                twin.step()
                states = [value for value in twin.state[alike].values() if isinstance(value, torch.Tensor)]
                sizes[key] = sum(value.numel() * value.element_size() for value in states)
            total += sizes[key]
    return total


class OptimizerConfig(Protocol):
    """An ``optimizer`` option: a frozen dataclass with the settings of an optimizer.

    To add an optimizer, write a dataclass and build the optimizer from `parameter_groups`:

        >>> from dataclasses import dataclass
        >>> import torch
        >>> from ssl_asr.models.encoder import LayerGroup
        >>> from ssl_asr.training.optimizers import parameter_groups
        >>> @dataclass(frozen=True, kw_only=True)
        ... class RAdam:
        ...     lr: float
        ...     weight_decay: float
        ...     layer_decay: float
        ...     def build(self, groups):
        ...         params = parameter_groups(
        ...             groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay
        ...         )
        ...         return torch.optim.RAdam(params, lr=self.lr)
        >>> groups = [LayerGroup(f"layers.{i}", (torch.nn.Linear(4, 4),)) for i in range(2)]
        >>> optimizer = RAdam(lr=0.1, weight_decay=0.01, layer_decay=0.5).build(groups)
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(0.1, 0.01), (0.1, 0.0), (0.05, 0.01), (0.05, 0.0)]

    The YAML file ``optimizer/radam.yaml`` names the class in ``_target_`` and gives every field a default. The
    optimizer is then selected with ``optimizer@optimizers.encoder=radam`` or ``optimizer@optimizers.rest=radam``.
    """

    @property
    def lr(self) -> float:
        """Peak learning rate of the top layer group. The scheduler scales it."""

    @property
    def layer_decay(self) -> float:
        """Learning-rate factor between one layer group and the group above it, in (0, 1]."""

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer.

        Args:
            groups: Layer groups of one side of the model, from the bottom up. Frozen parameters must be left out.

        Raises:
            ConfigError: If the settings do not go together, or a package is missing.
        """


class _ByLayer:
    """Base class of the options here: parameter groups with layer-wise decay of the learning rate."""

    lr: float
    weight_decay: float
    layer_decay: float

    def _parameter_groups(self, groups: Sequence[LayerGroup]) -> list[dict[str, Any]]:
        return parameter_groups(groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)


class _AnyAdam(_ByLayer):
    """Base class of the Adam options."""

    betas: list[float]
    eps: float

    def _adam(self, kind: type[torch.optim.Adam], groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds an Adam; with the fused kernel if all parameters are on CUDA or all are on the CPU."""
        made = self._parameter_groups(groups)
        devices = {parameter.device.type for group in made for parameter in group["params"]}
        fused = devices == {"cuda"} or devices == {"cpu"}
        return kind(made, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW(_AnyAdam):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), without weight decay on norms and biases.

    Attributes:
        lr: float, peak learning rate of the top layer group.
        betas: Two floats, decay rates of the first and second moment.
        eps: float, added to the denominator.
        weight_decay: float, decoupled weight decay of matrices.
        layer_decay: float in (0, 1], learning-rate factor between one layer group and the group above it. 1 for none.
    """

    lr: NonNegativeFloat
    betas: Betas
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    layer_decay: LayerDecay

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer over the trainable parameters of ``groups``."""
        return self._adam(torch.optim.AdamW, groups)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(_AnyAdam):
    """AdamW with moments of 8 bits, by bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861).

    Moments are quantized in blocks of 256. Tensors with fewer than 4,096 elements keep float32 moments.

    Attributes:
        lr, betas, eps, weight_decay, layer_decay: See `AdamW`.
    """

    lr: NonNegativeFloat
    betas: Betas
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    layer_decay: LayerDecay

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer over the trainable parameters of ``groups``.

        Raises:
            ConfigError: If bitsandbytes is not installed.
        """
        with optional_import("optimizer=adamw_8bit", "bitsandbytes", "8bit", "optimizer=adamw"):
            import bitsandbytes
        betas = (self.betas[0], self.betas[1])
        optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
            self._parameter_groups(groups), lr=self.lr, betas=betas, eps=self.eps
        )
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Adam(_AnyAdam):
    """Adam with L2 weight decay (added to the gradient), the optimizer of fairseq's wav2vec 2.0 recipes.

    Attributes:
        lr, betas, eps, layer_decay: See `AdamW`.
        weight_decay: float, L2 weight decay of matrices.
    """

    lr: NonNegativeFloat
    betas: Betas
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    layer_decay: LayerDecay

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer over the trainable parameters of ``groups``."""
        return self._adam(torch.optim.Adam, groups)


@dataclass(frozen=True, kw_only=True)
class Adadelta(_ByLayer):
    """Adadelta (Zeiler, 2012, arXiv:1212.5701), the optimizer of the heads in SpeechBrain's recipes.

    Attributes:
        lr: float, factor of the update. 1.0 in the paper.
        rho: float, decay rate of the running averages.
        eps: float, added under the roots.
        weight_decay: float, L2 weight decay of matrices.
        layer_decay: See `AdamW`.
    """

    lr: NonNegativeFloat
    rho: Fraction
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    layer_decay: LayerDecay

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer over the trainable parameters of ``groups``."""
        return torch.optim.Adadelta(self._parameter_groups(groups), lr=self.lr, rho=self.rho, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class SGD(_ByLayer):
    """Stochastic gradient descent with momentum.

    Attributes:
        lr: float, peak learning rate of the top layer group.
        momentum: float, 0 for none.
        nesterov: bool, use Nesterov momentum.
        weight_decay: float, L2 weight decay of matrices.
        layer_decay: See `AdamW`.
    """

    lr: NonNegativeFloat
    momentum: NonNegativeFloat
    nesterov: bool
    weight_decay: NonNegativeFloat
    layer_decay: LayerDecay

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """Builds the optimizer over the trainable parameters of ``groups``.

        Raises:
            ConfigError: If ``nesterov`` is set without momentum.
        """
        if self.nesterov and self.momentum <= 0:
            what = f"got true, but there is no momentum (momentum={self.momentum})"
            raise ConfigError("optimizers.nesterov", what, "use nesterov=false, or momentum above 0")
        params = self._parameter_groups(groups)
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
