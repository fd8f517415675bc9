"""Optimizers of one side of the model, over its layer groups from the bottom up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from ssl_asr.errors import ConfigError, missing_extra
from ssl_asr.models.encoder import LayerGroup


def layer_scales(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each group: 1 at the top, times ``layer_decay`` for each one below.

    Example:
        >>> layer_scales(["feature_encoder", "layers.0", "layers.1"], 0.5)
        {'feature_encoder': 0.25, 'layers.0': 0.5, 'layers.1': 1.0}
    """
    return {name: layer_decay ** (len(names) - 1 - i) for i, name in enumerate(names)}


def group_scales(groups: Sequence[LayerGroup], layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each group: its place among the layers, and its own ``lr_scale``."""
    # A part with a rate of its own is no layer above the others.
    layers = layer_scales([group.name for group in groups if group.lr_scale == 1.0], layer_decay)
    return {group.name: layers.get(group.name, 1.0) * group.lr_scale for group in groups}


def parameter_groups(
    groups: Sequence[LayerGroup], *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate, and within that weights with decay; norms and biases without.

    Args:
        groups: from the bottom up; what does not train in them is left out.
        lr: of the top group.
        weight_decay: on matrices and kernels; vectors (norms, biases) have none.
        layer_decay: see `layer_scales`; 1 gives every group the same rate.
    """
    scales = group_scales(groups, layer_decay)
    made: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for group in groups:
        for parameter in group.parameters():
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim >= 2 else 0.0
                made.setdefault((group.lr_scale != 1.0, lr * scales[group.name], decay), []).append(parameter)
    # The top of the model first, since its rate is the one that is logged; what has a rate of its own is last.
    ordered = sorted(made.items(), key=lambda item: (item[0][0], -item[0][1], -item[0][2]))
    return [{"params": params, "lr": rate, "weight_decay": decay} for (_, rate, decay), params in ordered]


class OptimizerConfig(Protocol):
    """An ``optimizer`` option."""

    @property
    def lr(self) -> float:
        """The learning rate of the top layer group, which the schedule scales."""

    @property
    def layer_decay(self) -> float:
        """The factor on the rate of each layer group below another."""

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups."""


def _adam(kind: type[torch.optim.Adam], options: "AdamW | Adam", groups: Sequence[LayerGroup]) -> Optimizer:
    """Either Adam; fused, the whole update in one kernel, where every parameter is on a CUDA GPU or the CPU."""
    made = parameter_groups(groups, lr=options.lr, weight_decay=options.weight_decay, layer_decay=options.layer_decay)
    kinds = {parameter.device.type for group in made for parameter in group["params"]}
    fused = kinds == {"cuda"} or kinds == {"cpu"}
    betas = (options.betas[0], options.betas[1])
    return kind(made, lr=options.lr, betas=betas, eps=options.eps, fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW, without weight decay on norms and biases; fused.

    Attributes:
        lr: peak learning rate, of the top layer group.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices only.
        layer_decay: factor on the rate of each layer group below another; 1 for none.
    """

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    layer_decay: float

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups."""
        return _adam(torch.optim.AdamW, self, groups)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit:
    """AdamW whose moments take a byte each, by bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861).

    They are quantised in blocks of 256; those of tensors under 4,096 elements stay in float32.

    Attributes:
        lr, betas, eps, weight_decay, layer_decay: see `AdamW`.
    """

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    layer_decay: float

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        try:
            import bitsandbytes
        except ImportError:
            raise missing_extra("optimizer=adamw_8bit", "bitsandbytes", "8bit", "optimizer=adamw") from None
        made = parameter_groups(groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        betas = (self.betas[0], self.betas[1])
        optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(made, lr=self.lr, betas=betas, eps=self.eps)
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, as fairseq fine-tunes wav2vec 2.0 with; its weight decay is L2, inside the gradient.

    Attributes:
        lr, betas, eps, layer_decay: see `AdamW`.
        weight_decay: L2, on matrices only.
    """

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    layer_decay: float

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups."""
        return _adam(torch.optim.Adam, self, groups)


@dataclass(frozen=True, kw_only=True)
class Adadelta:
    """Adadelta, as SpeechBrain's heads use it.

    Attributes:
        lr: factor on the update (1.0 as published).
        rho: decay of the running averages.
        eps: added under the roots.
        weight_decay: L2, on matrices only.
        layer_decay: see `AdamW`.
    """

    lr: float
    rho: float
    eps: float
    weight_decay: float
    layer_decay: float

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups."""
        made = parameter_groups(groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        return torch.optim.Adadelta(made, lr=self.lr, rho=self.rho, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum.

    Attributes:
        lr: learning rate, of the top layer group.
        momentum: 0 for none.
        nesterov: look ahead by the momentum.
        weight_decay: L2, on matrices only.
        layer_decay: see `AdamW`.
    """

    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    layer_decay: float

    def build(self, groups: Sequence[LayerGroup]) -> Optimizer:
        """The optimizer over the trainable parameters of these layer groups.

        Raises:
            ConfigError: Nesterov's step without a momentum.
        """
        if self.nesterov and self.momentum <= 0:
            raise ConfigError("optimizers.nesterov", "there is no momentum to look ahead by", "nesterov=false")
        made = parameter_groups(groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        return torch.optim.SGD(made, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
