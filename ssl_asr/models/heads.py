"""Heads: modules that turn encoder states into CTC logits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import padding_mask
from ssl_asr.types import Dropout, NonNegativeInt, PositiveInt, on_device

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig


class CtcHead(nn.Module, ABC):
    """Base class of the modules that compute CTC logits from encoder states.

    Contract: the logits of an utterance do not depend on its padding or on the other utterances of the batch.
    In evaluation, an utterance in a padded batch has the same logits as the utterance alone.
    """

    @abstractmethod
    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Computes logits.

        Args:
            h_BFD: Tensor of shape (batch, frames, features), encoder states.
            frame_lengths_B: int64 tensor on the CPU, number of valid frames of each utterance.

        Returns:
            ``logits_BFV``, shape (batch, frames, vocabulary). Logits after an utterance's last frame are undefined.
        """

    if TYPE_CHECKING:

        def __call__(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
            """See `forward`."""


class Head(Protocol):
    """A ``head`` option: a frozen dataclass with the settings of a head, and a method that builds the module.

    To add a head, write a `CtcHead` and an option for it:

        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> import torch
        >>> from torch import nn
        >>> from ssl_asr.models.heads import CtcHead
        >>> class Bottleneck(CtcHead):
        ...     def __init__(self, *, dim, width, vocab_size):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, vocab_size))
        ...     def forward(self, h_BFD, frame_lengths_B):
        ...         return self.layers(h_BFD)
        >>> @dataclass(frozen=True, kw_only=True)
        ... class BottleneckHead:
        ...     width: int
        ...     tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
        ...     copies_checkpoint: ClassVar[bool] = False
        ...     def build(self, *, dim, vocab_size):
        ...         return Bottleneck(dim=dim, width=self.width, vocab_size=vocab_size)
        >>> head = BottleneckHead(width=8).build(dim=16, vocab_size=30)
        >>> head(torch.zeros(2, 50, 16), torch.tensor([50, 40])).shape
        torch.Size([2, 50, 30])

    The YAML file ``head/bottleneck.yaml`` names the class in ``_target_`` and gives ``width`` a default. The head
    is then selected with ``head=bottleneck``.
    """

    tasks: ClassVar[frozenset[str]]
    """Tasks that take this head: a subset of {"ctc", "joint", "seq2seq"}."""

    copies_checkpoint: ClassVar[bool]
    """Whether the rows of the last layer are copied from a checkpoint fine-tuned with CTC. If True, `last_layer`
    must find the layer."""

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """Builds the module with random weights.

        Args:
            dim: int, features of a state.
            vocab_size: int, number of labels, with the CTC blank at index 0.

        Returns:
            A `CtcHead` for the task ``ctc``, a `ssl_asr.models.attention.JointHead` for the task ``joint``.
        """


class FrameWise(CtcHead):
    """Layers that process each frame independently, applied in order.

    Args:
        layers: nn.Module, called as ``layer(h_BFD, frame_lengths_B)``.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Applies the layers in order."""
        for layer in self.layers:
            h_BFD = layer(h_BFD, frame_lengths_B)
        return h_BFD


class FrameLinear(nn.Linear):
    """`torch.nn.Linear` with the call signature of a `FrameWise` layer."""

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Applies the linear map to every frame."""
        return super().forward(h_BFD)


class FrameDropout(nn.Dropout):
    """`torch.nn.Dropout` with the call signature of a `FrameWise` layer."""

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Applies dropout to every frame."""
        return super().forward(h_BFD)


class FrameLayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` with the call signature of a `FrameWise` layer."""

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Normalizes the features of every frame."""
        return super().forward(h_BFD)


class FrameIdentity(nn.Identity):
    """No normalization, with the call signature of a `FrameWise` layer."""

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Returns the states unchanged."""
        return h_BFD


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalization over valid frames: padding does not enter the mean, the variance or the running statistics.

    With the valid frames ``x`` of all utterances, ``n`` frames in total:

        mean     = sum(x) / n
        variance = sum((x - mean)^2) / n
        y        = (x - mean) / sqrt(variance + eps) * weight + bias

    The running variance is updated with the unbiased estimate, as in `torch.nn.BatchNorm1d`.
    """

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:  # type: ignore[override]
        """Normalizes ``h_BFD``: with batch statistics in train mode, with running statistics in eval mode."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            mean_D, variance_D = self.running_mean, self.running_var
        else:
            frames = on_device(frame_lengths_B.sum(), h_BFD.device)
            mask_BF = padding_mask(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
            x = h_BFD.float()
            mean_D = (x if mask_BF is None else x * mask_BF[..., None]).sum((0, 1)) / frames
            centered = x - mean_D if mask_BF is None else (x - mean_D) * mask_BF[..., None]
            variance_D = centered.square().sum((0, 1)) / frames
            with torch.no_grad():
                assert self.momentum is not None
                unbiased_D = variance_D * frames / (frames - 1).clamp(min=1)
                self.running_mean.lerp_(mean_D, self.momentum)
                self.running_var.lerp_(unbiased_D, self.momentum)
        normed = (h_BFD - mean_D) * (variance_D + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(h_BFD.dtype)


class _Block(nn.Module):
    """Linear layer, normalization, activation, dropout. In eval mode, frames are independent."""

    def __init__(self, *, dim: int, width: int, norm: nn.Module, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.norm = norm
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        h_BFD = self.norm(self.linear(h_BFD), frame_lengths_B)
        out: Tensor = self.dropout(self.activation(h_BFD))
        return out


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Dropout, then one linear layer.

    Attributes:
        dropout: float in [0, 1), dropout probability before the linear layer.
    """

    dropout: Dropout

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> CtcHead:
        """Builds the module; see `Head.build`."""
        return FrameWise(FrameDropout(self.dropout), FrameLinear(dim, vocab_size))


@dataclass(frozen=True, kw_only=True)
class PretrainedHead:
    """The linear layer of a checkpoint that was fine-tuned with CTC.

    `build` returns a layer with random weights. The caller then copies the checkpoint's rows into `last_layer`.

    Attributes:
        dropout: float in [0, 1), dropout probability before the linear layer.
    """

    dropout: Dropout

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = True

    def build(self, *, dim: int, vocab_size: int) -> CtcHead:
        """Builds the module with random weights; see `Head.build`."""
        return LinearHead(dropout=self.dropout).build(dim=dim, vocab_size=vocab_size)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """States that the head of the checkpoint was not trained on."""
        if not run.states.as_is:
            what = "reads the last states unchanged, as the checkpoint's head did"
            yield ConfigError("head", what, "use states=last states.stride=1, or another head")


def last_layer(head: nn.Module) -> nn.Linear:
    """Returns the layer of a `FrameWise` head that computes the logits."""
    assert isinstance(head, FrameWise)
    layer = head.layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def only_linear(head: nn.Module) -> nn.Linear | None:
    """The layer of a head that is one linear layer, and dropout before it. None for other heads."""
    if not isinstance(head, FrameWise) or not all(isinstance(layer, nn.Dropout) for layer in head.layers[:-1]):
        return None
    return last_layer(head)


@dataclass(frozen=True, kw_only=True)
class DnnHead:
    """Blocks of linear layer, normalization, activation and dropout, then a linear layer (SpeechBrain's ``VanillaNN``).

    Attributes:
        blocks: int, number of blocks.
        width: int, features of each block.
        norm: ``layer`` normalizes each frame independently; ``batch`` normalizes over all valid frames of the batch;
            ``none`` as in ``VanillaNN``.
        activation: ``leaky_relu``, ``relu`` or ``gelu``.
        dropout: float in [0, 1), dropout probability after each block.
    """

    blocks: NonNegativeInt
    width: PositiveInt
    norm: Literal["layer", "batch", "none"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: Dropout

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> CtcHead:
        """Builds the module; see `Head.build`."""
        trunk, width = self.trunk(dim=dim)
        return FrameWise(*trunk.layers, FrameLinear(width, vocab_size))

    def trunk(self, *, dim: int) -> tuple[FrameWise, int]:
        """Builds the blocks without the last linear layer.

        Args:
            dim: int, features of a state.

        Returns:
            The blocks, and the number of features they return.
        """
        norms = {"layer": FrameLayerNorm, "batch": FrameBatchNorm, "none": FrameIdentity}
        activations = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "gelu": nn.GELU}
        blocks = [
            _Block(
                dim=dim if i == 0 else self.width,
                width=self.width,
                norm=norms[self.norm](self.width),
                activation=activations[self.activation](),
                dropout=self.dropout,
            )
            for i in range(self.blocks)
        ]
        return FrameWise(*blocks), self.width if blocks else dim


class _BiLstm(CtcHead):
    """A bidirectional LSTM over the valid frames of each utterance, then a linear layer."""

    def __init__(self, *, dim: int, layers: int, width: int, dropout: float, vocab_size: int) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, width, layers, batch_first=True, bidirectional=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, vocab_size)

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        packed = pack_padded_sequence(h_BFD, frame_lengths_B.clamp(min=1), batch_first=True, enforce_sorted=False)
        out_BFD, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=h_BFD.shape[1])
        logits_BFV: Tensor = self.linear(self.dropout(out_BFD))
        return logits_BFV


@dataclass(frozen=True, kw_only=True)
class BiLstmHead:
    """A bidirectional LSTM, then a linear layer: the head of SUPERB's ASR task for frozen encoders.

    Attributes:
        layers: int, number of LSTM layers.
        width: int, features of each direction.
        dropout: float in [0, 1), dropout probability between the layers and before the linear layer.
    """

    layers: PositiveInt
    width: PositiveInt
    dropout: Dropout

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> CtcHead:
        """Builds the module; see `Head.build`."""
        return _BiLstm(dim=dim, layers=self.layers, width=self.width, dropout=self.dropout, vocab_size=vocab_size)


@dataclass(frozen=True, kw_only=True)
class NoHead:
    """No head, for Whisper: its decoder already has an output layer."""

    tasks: ClassVar[frozenset[str]] = frozenset({"seq2seq"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """Builds an empty module."""
        return nn.Identity()
