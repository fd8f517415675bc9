"""What every speech encoder offers, whoever wrote its layers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_asr.models.spec_augment import SpecAugment
from ssl_asr.types import Samples, Seconds


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """States ``h_BFD`` and two int64 lengths on the CPU.

    ``frame_lengths_B`` counts the frames of speech, which CTC aligns to. ``context_lengths_B`` counts the
    frames a decoder may look at: the same, plus Whisper's silence after the speech. ``layers``, where asked
    for, has the input of the first transformer layer and the states after each, the last being ``h_BFD``.
    """

    h_BFD: Tensor
    frame_lengths_B: Tensor
    context_lengths_B: Tensor
    layers: tuple[Tensor, ...] | None = None

    def rows(self, rows: Sequence[int]) -> "EncoderOutput":
        """Only these utterances of the batch, cut to the frames they need."""
        own = list(rows)
        most = int(self.context_lengths_B[own].max())
        layers = None if self.layers is None else tuple(layer[own, :most] for layer in self.layers)
        return EncoderOutput(self.h_BFD[own, :most], self.frame_lengths_B[own], self.context_lengths_B[own], layers)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """A named part of a model: the unit of freezing and of layer-wise learning rates.

    ``modules`` are put in eval mode when frozen; ``loose`` are parameters that sit in none of them. The learning
    rate of its side is multiplied by ``lr_scale``.
    """

    name: str
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()
    lr_scale: float = 1.0

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of the group, each once, by its name within its module; loose ones have none."""
        for module in self.modules:
            yield from module.named_parameters()
        yield from (("", parameter) for parameter in self.loose)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter of the group, each once."""
        yield from (parameter for _, parameter in self.named_parameters())


class SpeechEncoder(Protocol):
    """A pretrained encoder behind one contract; an ``nn.Module``.

    Padding never changes an answer: states up to ``frame_lengths_B`` equal those of the utterance alone.
    """

    dim: int
    max_s: Seconds | None
    masked_share: float | None
    """The share of frames hidden in the last forward pass; None where nothing is masked."""

    def mask_with(self, augment: SpecAugment) -> None:
        """Hide spans of the input whenever in train mode; before `layer_groups` is asked for."""

    def drop_layers(self, probability: float) -> None:
        """Leave out each transformer layer with this probability in training steps."""

    @property
    def n_layers(self) -> int:
        """Transformer layers of the checkpoint, also once it is cut."""

    def cut(self, layers: int) -> None:
        """Keep so many transformer layers from the bottom; what ended the last of them is not put after another."""

    def __call__(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """Encode float32 16 kHz samples; ``lengths_B`` is int64 on the CPU; ``layers`` asks for all layers' states."""

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames of so many samples, exact integer arithmetic."""

    def layer_groups(self) -> Sequence[LayerGroup]:
        """A partition of the trainable parameters, from the samples up."""

    def description(self) -> dict[str, Any]:
        """Plain data from which an untrained twin can be built (`ssl_asr.models.loading.rebuild`)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of ``nn.Module``."""


class Backbone(Protocol):
    """A ``backbone`` option: where the weights come from and how the encoder is to be run."""

    recommended_freeze: str


def padding_mask(lengths_B: Tensor, width: int, device: torch.device) -> Tensor | None:
    """True where a row has content, shape (B, width); None where every row is full, so that no mask is needed.

    ``lengths_B`` is on the CPU, so nothing here waits for the device.
    """
    if bool((lengths_B >= width).all()):
        return None
    return torch.arange(width, device=device)[None] < lengths_B.to(device, non_blocking=True)[:, None]


def no_gradient(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """A zero that gives each of the parameters that train a gradient of zero; 0.0 where there is none."""
    return sum(((parameter * 0.0).sum() for parameter in parameters if parameter.requires_grad), 0.0)


class FrameCounter(Protocol):
    """Whatever knows how many frames so many samples give: an encoder, or a module that joins its frames."""

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames of so many samples, exact integer arithmetic."""


def one_frame_length(counter: FrameCounter, samples: Samples) -> int:
    """Frames of one utterance of so many samples."""
    return int(counter.frame_lengths(torch.tensor([samples])))
