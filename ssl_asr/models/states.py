"""Encoder states that a head reads: the last layer, one chosen layer, or a weighted sum of all layers."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder, padding_mask


class States(nn.Module):
    """Selects or sums the layers of an encoder's output, and optionally stacks neighboring frames.

    With ``sum_layers``, states ``h_0 … h_L`` and learned weights ``w`` (zero at the start, so all layers count alike):

        h = sum over l of softmax(w)_l * h_l

    Args:
        dim: int, features of the encoder.
        sum_layers: int, number of layer outputs in the weighted sum; None uses the last states.
        layer_norm: bool, normalize each layer before the sum, because deep layers have a larger norm.
        stride: int, number of neighboring frames that are stacked into one; 1 leaves the frames unchanged.
    """

    def __init__(self, *, dim: int, sum_layers: int | None, layer_norm: bool, stride: int) -> None:
        super().__init__()
        self.weights_L = None if sum_layers is None else nn.Parameter(torch.zeros(sum_layers))
        self.layer_norm, self.stride = layer_norm, stride
        self.dim = dim * stride

    @property
    def reads_layers(self) -> bool:
        """Whether the encoder must return the states of every layer."""
        return self.weights_L is not None

    def frame_lengths(self, frame_lengths_B: Tensor) -> Tensor:
        """Returns the number of stacked frames for each number of encoder frames, rounded up."""
        return frame_lengths_B.add(self.stride - 1).div(self.stride, rounding_mode="floor")

    def forward(self, out: EncoderOutput) -> tuple[Tensor, Tensor]:
        """Returns the states for the head.

        Args:
            out: EncoderOutput. With ``sum_layers``, it must hold the states of every layer.

        Returns:
            ``h_BFD``, shape (batch, frames, ``self.dim``), and ``frame_lengths_B``, int64 on the CPU.
        """
        # Whisper's encoder also returns frames of the silence after the speech. Heads do not use them.
        # The width stays a tensor, so that a traced graph computes it for each input.
        width = out.frame_lengths_B.max()
        h_BFD = out.h_BFD[:, :width]
        if self.weights_L is not None:
            assert out.layers is not None
            assert len(out.layers) == len(self.weights_L)
            layers = [h[:, :width] for h in out.layers]
            layers = [functional.layer_norm(h, h.shape[-1:]) for h in layers] if self.layer_norm else layers
            weights_L = self.weights_L.softmax(0)
            h_BFD = sum((weight * h for weight, h in zip(weights_L, layers, strict=True)), torch.zeros_like(h_BFD))
        if self.stride == 1:
            return h_BFD, out.frame_lengths_B
        return self._stacked(h_BFD, out.frame_lengths_B), self.frame_lengths(out.frame_lengths_B)

    def _stacked(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Stacks every ``stride`` frames into one. Frames after an utterance's end are set to zero."""
        batch, frames, dim = h_BFD.shape
        mask_BF = padding_mask(frame_lengths_B, frames, h_BFD.device)
        h_BFD = h_BFD if mask_BF is None else h_BFD.masked_fill(~mask_BF[..., None], 0.0)
        h_BFD = functional.pad(h_BFD, (0, 0, 0, -frames % self.stride))
        return h_BFD.reshape(batch, -1, dim * self.stride)


class StatesOption(Protocol):
    """A ``states`` option: selects which encoder states the head reads."""

    @property
    def as_is(self) -> bool:
        """Whether the head gets the encoder's last states unchanged, as Whisper's decoder requires."""

    def build(self, encoder: SpeechEncoder) -> States:
        """Builds the module for an encoder. May remove the encoder's top layers.

        Raises:
            ConfigError: If the encoder does not have the layer.
        """


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The encoder's last states.

    Attributes:
        stride: 1, 2 or 3, number of neighboring frames that are stacked into one wider frame.
    """

    stride: Literal[1, 2, 3]

    @property
    def as_is(self) -> bool:
        """Whether the frames are left unchanged."""
        return self.stride == 1

    def build(self, encoder: SpeechEncoder) -> States:
        """Builds the module for an encoder."""
        return States(dim=encoder.dim, sum_layers=None, layer_norm=False, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class ChosenLayer:
    """The states after one transformer layer. The layers above it are removed and cost nothing.

    Attributes:
        layer: int, number of transformer layers to keep. 0 gives the input of the first layer. The number of all
            layers gives the last states, with the encoder's final norm. A negative number counts from the top: -1
            removes one layer.
        stride: 1, 2 or 3, number of neighboring frames that are stacked into one wider frame.
    """

    layer: int
    stride: Literal[1, 2, 3]

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    @property
    def as_is(self) -> bool:
        """False: layers may be missing."""
        return False

    def build(self, encoder: SpeechEncoder) -> States:
        """Builds the module for an encoder, and removes the encoder's layers above ``layer``.

        Raises:
            ConfigError: If the encoder does not have the layer.
        """
        kept = self.layer if self.layer >= 0 else encoder.n_layers + self.layer
        if not 0 <= kept <= encoder.n_layers:
            what = f"got {self.layer}, but the encoder has {encoder.n_layers} layers"
            raise ConfigError("states.layer", what, f"use -{encoder.n_layers} to {encoder.n_layers}")
        encoder.cut(kept)
        return States(dim=encoder.dim, sum_layers=None, layer_norm=False, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """A learned weighted sum of the input of the first layer and the states after every layer (S3PRL, SUPERB).

    Attributes:
        layer_norm: bool, normalize the states of each layer before the sum.
        stride: 1, 2 or 3, number of neighboring frames that are stacked into one wider frame.
    """

    layer_norm: bool
    stride: Literal[1, 2, 3]

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    @property
    def as_is(self) -> bool:
        """False: the states are a sum of layers."""
        return False

    def build(self, encoder: SpeechEncoder) -> States:
        """Builds the module for an encoder."""
        return States(dim=encoder.dim, sum_layers=encoder.n_layers + 1, layer_norm=self.layer_norm, stride=self.stride)
