"""Which parts train: policies are pure functions over group names, and frozen is frozen.

A frozen part has no gradients, is in eval mode whatever the rest does (no dropout, no statistics), takes no
memory for backward below the lowest trainable layer, and is in no optimizer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ssl_asr.errors import ConfigError
from ssl_asr.models.backbone import LayerGroup


class FreezePolicy(Protocol):
    """Chooses which layer groups train."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """The names that train, out of the encoder's from bottom to top and those of the rest (head or decoder).

        Raises:
            ConfigError: the model does not have what the policy speaks of.
        """


@dataclass(frozen=True, kw_only=True)
class TrainAll:
    """Every weight trains."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All of them."""
        return frozenset([*encoder, *rest])


@dataclass(frozen=True, kw_only=True)
class FreezeFeatureEncoder:
    """The convolutions next to the samples stay as pretrained, the rest trains."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return frozenset([*encoder, *rest]) - {"feature_encoder"}


@dataclass(frozen=True, kw_only=True)
class FreezeEncoder:
    """The whole pretrained encoder stays as it is: CTC trains its head, Whisper its decoder."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """None of the encoder's."""
        return frozenset(rest)


@dataclass(frozen=True, kw_only=True)
class FreezeDecoder:
    """Whisper's decoder stays as it is and its encoder trains: new sounds or rooms, the language known."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """None of the decoder's."""
        decoder = {name for name in rest if name.startswith("decoder.")}
        if not decoder:
            raise ConfigError("freeze_policy", "this model has no pretrained decoder", "freeze_policy=encoder")
        return frozenset([*encoder, *rest]) - decoder


@dataclass(frozen=True, kw_only=True)
class TrainTopK:
    """The top layers of the encoder train, what is below stays as pretrained.

    Attributes:
        k: transformer layers that train, with the norm after them.
    """

    k: int

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """The last ``k`` layers, what follows them, and the rest."""
        layers = [name for name in encoder if name.startswith("layers.")]
        if not 1 <= self.k <= len(layers):
            what = f"the encoder has {len(layers)} transformer layers, not {self.k}"
            raise ConfigError("freeze_policy.k", what, "freeze_policy=encoder trains none of them")
        return frozenset([*encoder[encoder.index(layers[-self.k]) :], *rest])


def check_partition(groups: Iterable[LayerGroup], parameters: Iterable[nn.Parameter]) -> None:
    """Assert that groups share no parameter and hold every one that could train."""
    grouped = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(grouped) == len(set(grouped)), "a parameter is in two layer groups"
    loose = {id(p) for p in parameters if p.requires_grad} - set(grouped)
    assert not loose, f"{len(loose)} parameters are in no layer group"


def apply_policy(groups: Sequence[LayerGroup], trainable: frozenset[str]) -> list[nn.Module]:
    """Switch gradients by group, both ways, and return the modules that must stay in eval mode.

    Args:
        groups: of a side of the model.
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
