"""What turns encoder states into CTC logits.

A head takes ``h_BFD`` and ``frame_lengths_B`` (int64, CPU) and gives ``logits_BFV``; what lies beyond an
utterance's frames never reaches them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ssl_asr.models.encoder import padding_mask


class FrameWise(nn.Module):
    """Layers of which none sees more than its own frame, run one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Each layer in turn."""
        for layer in self.layers:
            h_BFD = layer(h_BFD, frame_lengths_B) if isinstance(layer, _Block) else layer(h_BFD)
        return h_BFD


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Dropout and one linear layer.

    Attributes:
        dropout: probability, before the layer.
    """

    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD, frame_lengths_B`` to ``logits_BFV``."""
        return FrameWise(nn.Dropout(self.dropout), nn.Linear(dim, vocab_size))


@dataclass(frozen=True, kw_only=True)
class PretrainedHead:
    """The last layer of a checkpoint that is fine-tuned with CTC: its rows are copied once the layer is built.

    Attributes:
        dropout: probability, before the layer.
    """

    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD, frame_lengths_B`` to ``logits_BFV``."""
        return LinearHead(dropout=self.dropout).build(dim=dim, vocab_size=vocab_size)


def last_layer(head: nn.Module) -> nn.Linear:
    """The layer that gives a linear head's logits."""
    assert isinstance(head, FrameWise)
    layer = head.layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm over the frames that are speech: padding is in no mean, no variance and no running statistic."""

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``h_BFD``, in training by its own frames, else by the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            mean_D, variance_D = self.running_mean, self.running_var
        else:
            frames = frame_lengths_B.sum().to(h_BFD.device, non_blocking=True)
            mask_BF = padding_mask(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
            x = h_BFD.float()
            mean_D = (x if mask_BF is None else x * mask_BF[..., None]).sum((0, 1)) / frames
            centred = x - mean_D if mask_BF is None else (x - mean_D) * mask_BF[..., None]
            variance_D = centred.square().sum((0, 1)) / frames
            with torch.no_grad():
                assert self.momentum is not None
                unbiased_D = variance_D * frames / (frames - 1).clamp(min=1)
                self.running_mean.lerp_(mean_D, self.momentum)
                self.running_var.lerp_(unbiased_D, self.momentum)
        normed = (h_BFD - mean_D) * (variance_D + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(h_BFD.dtype)


class _Block(nn.Module):
    """Linear, norm, activation, dropout. In evaluation a frame never sees another."""

    def __init__(self, *, dim: int, width: int, norm: str, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.norm: Any = FrameBatchNorm(width) if norm == "batch" else nn.LayerNorm(width)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        h_BFD = self.linear(h_BFD)
        batch = isinstance(self.norm, FrameBatchNorm)
        h_BFD = self.norm(h_BFD, frame_lengths_B) if batch else self.norm(h_BFD)
        out: Tensor = self.dropout(self.activation(h_BFD))
        return out


@dataclass(frozen=True, kw_only=True)
class DnnHead:
    """Blocks of linear layer, norm, activation and dropout, then a linear layer (SpeechBrain's ``VanillaNN``).

    Attributes:
        blocks: how many.
        width: features of each.
        norm: layer, a frame at a time; batch, over all frames that are speech.
        activation: leaky_relu, relu or gelu.
        dropout: probability, after each block.
    """

    blocks: int
    width: int
    norm: Literal["layer", "batch"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD, frame_lengths_B`` to ``logits_BFV``."""
        trunk, width = self.trunk(dim=dim)
        return FrameWise(*trunk.layers, nn.Linear(width, vocab_size))

    def trunk(self, *, dim: int) -> tuple[FrameWise, int]:
        """The blocks alone, over states of so many features, and the features they give."""
        makers = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "gelu": nn.GELU}
        blocks = [
            _Block(
                dim=dim if i == 0 else self.width,
                width=self.width,
                norm=self.norm,
                activation=makers[self.activation](),
                dropout=self.dropout,
            )
            for i in range(self.blocks)
        ]
        return FrameWise(*blocks), self.width if blocks else dim


class _BiLstm(nn.Module):
    """A bidirectional LSTM that ends with each utterance, then a linear layer."""

    def __init__(self, *, dim: int, layers: int, width: int, dropout: float, vocab_size: int) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, width, layers, batch_first=True, bidirectional=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, vocab_size)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        packed = pack_padded_sequence(h_BFD, frame_lengths_B.clamp(min=1), batch_first=True, enforce_sorted=False)
        read_BFD, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=h_BFD.shape[1])
        logits_BFV: Tensor = self.linear(self.dropout(read_BFD))
        return logits_BFV


@dataclass(frozen=True, kw_only=True)
class BiLstmHead:
    """A bidirectional LSTM, then a linear layer: SUPERB's head for frozen encoders.

    Attributes:
        layers: how many.
        width: features of each direction.
        dropout: probability, between layers and before the linear layer.
    """

    layers: int
    width: int
    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD, frame_lengths_B`` to ``logits_BFV``."""
        return _BiLstm(dim=dim, layers=self.layers, width=self.width, dropout=self.dropout, vocab_size=vocab_size)


@dataclass(frozen=True, kw_only=True)
class NoHead:
    """No head: Whisper's decoder ends in its own."""
