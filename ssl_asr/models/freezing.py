"""Which parts train: policies are pure functions over group names, and frozen is frozen.

A frozen part has no gradients, is in eval mode whatever the rest does (no dropout, no statistics), takes no
memory for backward below the lowest trainable layer, and is in no optimizer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ssl_asr.models.backbone import LayerGroup


class FreezePolicy(Protocol):
    """Chooses which groups of the pretrained encoder train."""

    def trainable(self, names: Sequence[str]) -> frozenset[str]:
        """The names, out of the encoder's from bottom to top, that train."""


@dataclass(frozen=True, kw_only=True)
class TrainAll:
    """Every weight trains."""

    def trainable(self, names: Sequence[str]) -> frozenset[str]:
        """All of them."""
        return frozenset(names)


@dataclass(frozen=True, kw_only=True)
class FreezeFeatureEncoder:
    """The convolutions next to the samples stay as pretrained, the rest trains."""

    def trainable(self, names: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return frozenset(names) - {"feature_encoder"}


@dataclass(frozen=True, kw_only=True)
class FreezeEncoder:
    """The whole pretrained encoder stays as it is: CTC trains its head, Whisper its decoder."""

    def trainable(self, names: Sequence[str]) -> frozenset[str]:
        """None."""
        return frozenset()


def check_partition(groups: Iterable[LayerGroup], parameters: Iterable[nn.Parameter]) -> None:
    """Assert that groups share no parameter and hold every one that could train."""
    grouped = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(grouped) == len(set(grouped)), "a parameter is in two layer groups"
    loose = {id(p) for p in parameters if p.requires_grad} - set(grouped)
    assert not loose, f"{len(loose)} parameters are in no layer group"


def apply_policy(groups: Sequence[LayerGroup], trainable: frozenset[str]) -> list[nn.Module]:
    """Switch gradients by group, both ways, and return the modules that must stay in eval mode.

    Args:
        groups: of the encoder.
        trainable: names that train; a name no group has is an invariant broken.
    """
    unknown = trainable - {group.name for group in groups}
    assert not unknown, f"no layer groups named {sorted(unknown)}"
    frozen: list[nn.Module] = []
    for group in groups:
        for parameter in group.parameters():
            parameter.requires_grad_(group.name in trainable)
        if group.name not in trainable:
            frozen.extend(group.modules)
    return frozen
