"""Which parts train: policies are pure functions over group names, and frozen is frozen.

A frozen part has no gradients, is in eval mode whatever the rest does (no dropout, no statistics), takes no
memory for backward below the lowest trainable layer, and is in no optimizer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import LayerGroup


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: updates made, epochs finished."""

    update: int
    epoch: int


class FreezePolicy(Protocol):
    """Chooses which layer groups train."""

    thaws: bool
    """Whether what trains changes in the course of a run."""

    @property
    def only_trained(self) -> bool:
        """Whether checkpoints leave out what never changes."""

    def prepare(self, encoder: Any, decoder: nn.Module | None) -> None:
        """Change a model whose weights are loaded, before its layer groups are asked for."""

    def selects(self, group: str, parameter: str) -> bool:
        """Whether a parameter, by its name within a layer group that trains, trains too."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """The names that ever train, out of the encoder's from the bottom up and the rest's (head or decoder).

        Raises:
            ConfigError: the model does not have what the policy speaks of.
        """

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """The names that train in the next update."""


class WholeGroups:
    """What policies share that leave the model as it is and choose whole layer groups."""

    @property
    def only_trained(self) -> bool:
        """Checkpoints are whole."""
        return False

    def prepare(self, encoder: Any, decoder: nn.Module | None) -> None:
        """The model stays as it is."""

    def selects(self, group: str, parameter: str) -> bool:
        """Every parameter of a group that trains."""
        return True


class ConstantPolicy(WholeGroups):
    """What policies share that choose once for the whole run."""

    thaws = False

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """The names that ever train."""
        raise AssertionError("a policy says what trains")

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """The names that train in the next update: the same at any time."""
        return self.trainable(encoder, rest)


@dataclass(frozen=True, kw_only=True)
class TrainAll(ConstantPolicy):
    """Every weight trains."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All of them."""
        return frozenset([*encoder, *rest])


@dataclass(frozen=True, kw_only=True)
class FreezeFeatureEncoder(ConstantPolicy):
    """The convolutions next to the samples stay as pretrained, the rest trains."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return frozenset([*encoder, *rest]) - {"feature_encoder"}


@dataclass(frozen=True, kw_only=True)
class FreezeEncoder(ConstantPolicy):
    """The whole pretrained encoder stays as it is: CTC trains its head, Whisper its decoder."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """None of the encoder's."""
        return frozenset(rest)


@dataclass(frozen=True, kw_only=True)
class FreezeDecoder(ConstantPolicy):
    """Whisper's decoder stays as it is and its encoder trains: new sounds or rooms, the language known."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """None of the decoder's."""
        decoder = {name for name in rest if name.startswith("decoder.")}
        if not decoder:
            raise ConfigError("freeze_policy", "this model has no pretrained decoder", "freeze_policy=encoder")
        return frozenset([*encoder, *rest]) - decoder


@dataclass(frozen=True, kw_only=True)
class TrainTopK(ConstantPolicy):
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


def _from_layer(encoder: Sequence[str], open_layers: int) -> frozenset[str]:
    """The top ``open_layers`` transformer layers and what follows them; with all of them, what leads to them too.

    The convolutions are never among them.
    """
    layers = [name for name in encoder if name.startswith("layers.")]
    if open_layers <= 0 or not layers:
        return frozenset()
    if open_layers >= len(layers):
        return frozenset(encoder) - {"feature_encoder"}
    return frozenset(encoder[encoder.index(layers[-open_layers]) :])


@dataclass(frozen=True, kw_only=True)
class HeadFirst(WholeGroups):
    """Head (or decoder) alone for some updates, then the encoder too: fairseq's ``freeze_finetune_updates``.

    A new head's first gradients are noise, which the pretrained weights are spared. The convolutions stay as
    pretrained, as there.

    Attributes:
        updates: that the encoder waits for.
    """

    updates: int
    thaws = True

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return FreezeFeatureEncoder().trainable(encoder, rest)

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """The rest alone, then all but ``feature_encoder``."""
        return frozenset(rest) if progress.update < self.updates else self.trainable(encoder, rest)


@dataclass(frozen=True, kw_only=True)
class GradualThaw(WholeGroups):
    """The encoder thaws from the top, a transformer layer at a time (Howard and Ruder, 2018).

    What follows the layers thaws with the top one, what leads to them with the lowest; the convolutions stay.

    Attributes:
        wait: updates or epochs before the top layer thaws.
        every: updates or epochs from one layer to the next.
        unit: of both.
    """

    wait: int
    every: int
    unit: Literal["update", "epoch"]
    thaws = True

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return FreezeFeatureEncoder().trainable(encoder, rest)

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """The rest, and the layers that have thawed by now."""
        now = progress.update if self.unit == "update" else progress.epoch
        open_layers = 0 if now < self.wait else 1 + (now - self.wait) // self.every
        return frozenset(rest) | _from_layer(encoder, open_layers)


def check_partition(groups: Iterable[LayerGroup], parameters: Iterable[nn.Parameter]) -> None:
    """Assert that groups share no parameter and hold every one that could train."""
    grouped = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(grouped) == len(set(grouped)), "a parameter is in two layer groups"
    loose = {id(p) for p in parameters if p.requires_grad} - set(grouped)
    assert not loose, f"{len(loose)} parameters are in no layer group"


def apply_policy(
    groups: Sequence[LayerGroup], trainable: frozenset[str], selects: Callable[[str, str], bool]
) -> list[nn.Module]:
    """Switch gradients by group, both ways, and return the modules that must stay in eval mode.

    Args:
        groups: of a side of the model.
        trainable: names that train; a name no group has is an invariant broken.
        selects: which parameters of those, by group and name.
    """
    unknown = trainable - {group.name for group in groups}
    assert not unknown, f"no layer groups named {sorted(unknown)}"
    frozen: list[nn.Module] = []
    for group in groups:
        for name, parameter in group.named_parameters():
            parameter.requires_grad_(group.name in trainable and selects(group.name, name))
        if group.name not in trainable:
            frozen.extend(group.modules)
    return frozen
