"""Which of the encoder's states the head reads: the last, a chosen layer's, or a learnt sum of all."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder, padding_mask


class States(nn.Module):
    """From an encoder's output to the states a head reads, with their true number.

    Args:
        dim: features of the encoder.
        sum_layers: how many layers a learnt sum runs over; None reads the last states.
        layer_norm: normalise each layer before the sum, since deep layers are louder than low ones.
        stride: states joined into one; 1 leaves them.
    """

    def __init__(self, *, dim: int, sum_layers: int | None, layer_norm: bool, stride: int) -> None:
        super().__init__()
        self.weights_L = None if sum_layers is None else nn.Parameter(torch.zeros(sum_layers))
        self.layer_norm, self.stride = layer_norm, stride
        self.dim = dim * stride

    @property
    def reads_layers(self) -> bool:
        """Whether the encoder has to give the states of every layer."""
        return self.weights_L is not None

    def frame_lengths(self, frame_lengths_B: Tensor) -> Tensor:
        """States of so many encoder frames: the last may be joined from fewer than ``stride``."""
        return frame_lengths_B.add(self.stride - 1).div(self.stride, rounding_mode="floor")

    def forward(self, out: EncoderOutput) -> tuple[Tensor, Tensor]:
        """States ``h_BFD`` and ``frame_lengths_B`` (int64, CPU)."""
        # Whisper's encoder also gives frames of the silence after the speech, which no head needs.
        width = int(out.frame_lengths_B.max())
        h_BFD = out.h_BFD[:, :width]
        if self.weights_L is not None:
            assert out.layers is not None
            assert len(out.layers) == len(self.weights_L)
            layers = [h[:, :width] for h in out.layers]
            layers = [functional.layer_norm(h, h.shape[-1:]) for h in layers] if self.layer_norm else layers
            share_L = self.weights_L.softmax(0)
            h_BFD = sum((share * h for share, h in zip(share_L, layers, strict=True)), torch.zeros_like(h_BFD))
        if self.stride == 1:
            return h_BFD, out.frame_lengths_B
        return self._joined(h_BFD, out.frame_lengths_B), self.frame_lengths(out.frame_lengths_B)

    def _joined(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """``stride`` states side by side in one; what lies beyond an utterance's end is zero, as when alone."""
        batch, frames, dim = h_BFD.shape
        mask_BF = padding_mask(frame_lengths_B, frames, h_BFD.device)
        h_BFD = h_BFD if mask_BF is None else h_BFD.masked_fill(~mask_BF[..., None], 0.0)
        h_BFD = functional.pad(h_BFD, (0, 0, 0, -frames % self.stride))
        return h_BFD.reshape(batch, -1, dim * self.stride)


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The encoder's last states.

    Attributes:
        stride: 2 or 3 join so many states into one, for fewer, wider frames; 1 leaves them.
    """

    stride: int

    def build(self, encoder: SpeechEncoder) -> States:
        """The module for this encoder."""
        return States(dim=encoder.dim, sum_layers=None, layer_norm=False, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class ChosenLayer:
    """The states after one transformer layer; the layers above it are taken off and cost nothing.

    Attributes:
        layer: how many layers to keep: 0 gives the input of the first, 12 of 12 the last states with their
            final norm; negative counts from the top, -1 leaving one layer out.
        stride: see `LastLayer`.
    """

    layer: int
    stride: int

    def build(self, encoder: SpeechEncoder) -> States:
        """The module for this encoder, which is cut.

        Raises:
            ConfigError: there is no such layer.
        """
        kept = self.layer if self.layer >= 0 else encoder.n_layers + self.layer
        if not 0 <= kept <= encoder.n_layers:
            raise ConfigError("states.layer", f"is {self.layer}", f"the encoder has {encoder.n_layers} layers")
        encoder.cut(kept)
        return States(dim=encoder.dim, sum_layers=None, layer_norm=False, stride=self.stride)


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """A learnt convex sum of the states of every layer, the input of the first included, as S3PRL and SUPERB do.

    Attributes:
        layer_norm: normalise each layer's states before the sum.
        stride: see `LastLayer`.
    """

    layer_norm: bool
    stride: int

    def build(self, encoder: SpeechEncoder) -> States:
        """The module for this encoder."""
        return States(dim=encoder.dim, sum_layers=encoder.n_layers + 1, layer_norm=self.layer_norm, stride=self.stride)
