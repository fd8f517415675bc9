"""Freeze policies: which layer groups of a model train.

A policy is a pure function of group names. A frozen group has ``requires_grad=False``, stays in eval mode (no dropout,
no statistics), stores nothing for backward below the lowest trainable layer, and is in no optimizer.

Group names, from the bottom up:

    encoder   feature_encoder, projection, layers.0 … layers.N, final_norm
    rest      states, head                                     (CTC and joint)
              decoder.embed, decoder.layers.0 …, decoder.final_norm   (Whisper)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import nn

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import LayerGroup, SpeechEncoder
from ssl_asr.types import NonNegativeInt, PositiveInt


@dataclass(frozen=True, slots=True)
class Progress:
    """Position in a training run.

    Attributes:
        update: int, number of finished updates.
        epoch: int, number of finished epochs.
    """

    update: int
    epoch: int


class FreezePolicy(Protocol):
    """A ``freeze_policy`` option: a frozen dataclass that selects which layer groups train.

    To add a policy, derive it from `ConstantPolicy`, or from `WholeGroups` if the selection changes during
    training:

        >>> from dataclasses import dataclass
        >>> from ssl_asr.models.freezing import ConstantPolicy
        >>> @dataclass(frozen=True, kw_only=True)
        ... class EveryOtherLayer(ConstantPolicy):
        ...     def trainable(self, encoder, rest):
        ...         layers = [name for name in encoder if name.startswith("layers.")]
        ...         return frozenset([*layers[::2], *rest])
        >>> policy = EveryOtherLayer()
        >>> sorted(policy.trainable(["feature_encoder", "layers.0", "layers.1", "layers.2"], ["head"]))
        ['head', 'layers.0', 'layers.2']
        >>> policy.thaws, policy.freezes_encoder, policy.only_trained
        (False, False, False)

    The YAML file ``freeze_policy/every_other_layer.yaml`` names the class in ``_target_``. The policy is then selected
    with ``freeze_policy=every_other_layer``.
    """

    thaws: ClassVar[bool]
    """Whether the trainable groups change during training."""

    freezes_encoder: ClassVar[bool]
    """Whether the whole encoder stays frozen for the whole run."""

    @property
    def only_trained(self) -> bool:
        """Whether checkpoints hold only the parameters that train, without the frozen pretrained weights."""

    def prepare(self, encoder: SpeechEncoder, decoder: nn.Module | None) -> None:
        """Changes the model, for example inserts adapters. Called once, after the pretrained weights are loaded.

        Args:
            encoder: SpeechEncoder, the pretrained encoder.
            decoder: nn.Module, Whisper's pretrained decoder; None for other models.

        Raises:
            ConfigError: If the policy does not apply to the model.
        """

    def selects(self, group: str, parameter: str) -> bool:
        """Returns whether a parameter of a trainable group trains.

        Args:
            group: str, name of the layer group.
            parameter: str, name of the parameter within its module.
        """

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the names of the groups that train at any time of the run.

        Args:
            encoder: Names of the encoder's groups, from the bottom up.
            rest: Names of the other groups: states and head, or Whisper's decoder.

        Raises:
            ConfigError: If the model does not have the groups that the policy selects from.
        """

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """Returns the names of the groups that train in the next update.

        Args:
            encoder: Names of the encoder's groups, from the bottom up.
            rest: Names of the other groups.
            progress: Progress, number of finished updates and epochs.
        """


class WholeGroups:
    """Base class of policies that select whole layer groups and leave the model unchanged."""

    freezes_encoder: ClassVar[bool] = False

    @property
    def only_trained(self) -> bool:
        """False: checkpoints hold every weight."""
        return False

    def prepare(self, encoder: SpeechEncoder, decoder: nn.Module | None) -> None:
        """Leaves the model unchanged."""

    def selects(self, group: str, parameter: str) -> bool:
        """Selects every parameter."""
        return True


class ConstantPolicy(WholeGroups, ABC):
    """Base class of policies with one selection for the whole run. A subclass defines `trainable`."""

    thaws: ClassVar[bool] = False

    @abstractmethod
    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the names of the groups that train; see `FreezePolicy.trainable`."""

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """Returns the names of the groups that train, independent of ``progress``."""
        return self.trainable(encoder, rest)


@dataclass(frozen=True, kw_only=True)
class TrainAll(ConstantPolicy):
    """Trains every weight."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups."""
        return frozenset([*encoder, *rest])


@dataclass(frozen=True, kw_only=True)
class FreezeFeatureEncoder(ConstantPolicy):
    """Freezes the convolutional feature encoder and trains everything else."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups except ``feature_encoder``."""
        return frozenset([*encoder, *rest]) - {"feature_encoder"}


@dataclass(frozen=True, kw_only=True)
class FreezeEncoder(ConstantPolicy):
    """Freezes the whole pretrained encoder. CTC trains its head, Whisper its decoder."""

    freezes_encoder: ClassVar[bool] = True

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the groups outside the encoder."""
        return frozenset(rest)


@dataclass(frozen=True, kw_only=True)
class FreezeDecoder(ConstantPolicy):
    """Freezes Whisper's decoder and trains its encoder, for new acoustic conditions in a known language."""

    tasks: ClassVar[frozenset[str]] = frozenset({"seq2seq"})

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups outside the decoder.

        Raises:
            ConfigError: If the model has no pretrained decoder.
        """
        decoder = {name for name in rest if name.startswith("decoder.")}
        if not decoder:
            raise ConfigError("freeze_policy", "this model has no pretrained decoder", "use freeze_policy=encoder")
        return frozenset([*encoder, *rest]) - decoder


@dataclass(frozen=True, kw_only=True)
class TrainTopK(ConstantPolicy):
    """Trains the top layers of the encoder and freezes the layers below.

    Attributes:
        k: int, number of transformer layers that train. The final norm trains with them.
    """

    k: PositiveInt

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns the top ``k`` transformer layers, the groups above them, and the groups outside the encoder.

        Raises:
            ConfigError: If the encoder has fewer than ``k`` transformer layers.
        """
        layers = [name for name in encoder if name.startswith("layers.")]
        if not 1 <= self.k <= len(layers):
            what = f"got {self.k}, but the encoder has {len(layers)} transformer layers"
            raise ConfigError("freeze_policy.k", what, f"use 1 to {len(layers)}, or freeze_policy=encoder")
        return frozenset([*encoder[encoder.index(layers[-self.k]) :], *rest])


def _from_layer(encoder: Sequence[str], open_layers: int) -> frozenset[str]:
    """Returns the top ``open_layers`` transformer layers and the groups above them.

    If all layers are open, the projection below them is included. The feature encoder never is.
    """
    layers = [name for name in encoder if name.startswith("layers.")]
    if open_layers <= 0 or not layers:
        return frozenset()
    if open_layers >= len(layers):
        return frozenset(encoder) - {"feature_encoder"}
    return frozenset(encoder[encoder.index(layers[-open_layers]) :])


@dataclass(frozen=True, kw_only=True)
class HeadFirst(WholeGroups):
    """Trains the head or decoder alone at first, then the encoder too (fairseq's ``freeze_finetune_updates``).

    The first gradients of a new head are noise. They do not reach the pretrained weights. The feature encoder stays
    frozen.

    Attributes:
        updates: int, number of updates before the encoder trains.
    """

    updates: PositiveInt

    thaws: ClassVar[bool] = True

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups except ``feature_encoder``."""
        return FreezeFeatureEncoder().trainable(encoder, rest)

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """Returns the groups outside the encoder; after ``updates`` updates, all except ``feature_encoder``."""
        return frozenset(rest) if progress.update < self.updates else self.trainable(encoder, rest)


@dataclass(frozen=True, kw_only=True)
class GradualThaw(WholeGroups):
    """Unfreezes the encoder from the top, one transformer layer at a time (Howard and Ruder, 2018, arXiv:1801.06146).

    The final norm thaws with the top layer, the projection with the lowest one. The feature encoder stays frozen.
    The number of open layers is

        0                             before ``wait``
        1 + (now - wait) // every     from then on

    Attributes:
        wait: int, updates or epochs before the top layer thaws.
        every: int, updates or epochs between one layer and the next.
        unit: ``update`` or ``epoch``, the unit of ``wait`` and ``every``.
    """

    wait: NonNegativeInt
    every: PositiveInt
    unit: Literal["update", "epoch"]

    thaws: ClassVar[bool] = True

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Returns all groups except ``feature_encoder``."""
        return FreezeFeatureEncoder().trainable(encoder, rest)

    def trainable_at(self, encoder: Sequence[str], rest: Sequence[str], progress: Progress) -> frozenset[str]:
        """Returns the groups outside the encoder and the encoder's open layers."""
        now = progress.update if self.unit == "update" else progress.epoch
        open_layers = 0 if now < self.wait else 1 + (now - self.wait) // self.every
        return frozenset(rest) | _from_layer(encoder, open_layers)


def check_partition(groups: Iterable[LayerGroup], parameters: Iterable[nn.Parameter]) -> None:
    """Asserts that every trainable parameter is in exactly one layer group.

    Args:
        groups: Layer groups of one side of the model.
        parameters: All parameters of that side.
    """
    grouped = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(grouped) == len(set(grouped)), "a parameter is in two layer groups"
    missing = {id(p) for p in parameters if p.requires_grad} - set(grouped)
    assert not missing, f"{len(missing)} parameters are in no layer group"


def apply_policy(
    groups: Sequence[LayerGroup], trainable: frozenset[str], selects: Callable[[str, str], bool]
) -> list[nn.Module]:
    """Sets ``requires_grad`` of every parameter, on or off.

    Args:
        groups: Layer groups of one side of the model.
        trainable: Names of the groups that train. Every name must be in ``groups``.
        selects: ``selects(group, parameter)`` returns whether a parameter of a trainable group trains.

    Returns:
        The modules of the frozen groups, which must stay in eval mode.
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
