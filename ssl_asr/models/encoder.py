"""The contract between pretrained speech encoders and the rest of the package.

A family of models (wav2vec 2.0, w2v-BERT, Whisper, …) is one module with two classes: a `SpeechEncoder`, which runs
the model, and a `Backbone` option, which loads it. Nothing else in the package names a family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.spec_augment import SpecAugment
from ssl_asr.types import Samples, Seconds, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    from ssl_asr.config.schemas import TrainConfig

Window = Literal["real", "30s"]


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """Encoder states and their lengths.

    Attributes:
        h_BFD: float, shape (batch, frames, features), states after the last layer.
        frame_lengths_B: int64 on the CPU, number of frames that contain speech. CTC aligns to these frames.
        context_lengths_B: int64 on the CPU, number of frames that a decoder may attend to. Whisper adds frames of
            silence after the speech. Every other family has the same value as ``frame_lengths_B``.
        layers: Input of the first layer, then the states after each layer. The last item is ``h_BFD``. None if the
            states of all layers were not requested.
    """

    h_BFD: Tensor
    frame_lengths_B: Tensor
    context_lengths_B: Tensor
    layers: tuple[Tensor, ...] | None = None

    def rows(self, rows: Sequence[int]) -> "EncoderOutput":
        """Returns a sub-batch, trimmed to its longest utterance."""
        kept = list(rows)
        width = int(self.context_lengths_B[kept].max())
        layers = None if self.layers is None else tuple(layer[kept, :width] for layer in self.layers)
        return EncoderOutput(self.h_BFD[kept, :width], self.frame_lengths_B[kept], self.context_lengths_B[kept], layers)

    @staticmethod
    def joined(outs: "Sequence[EncoderOutput]") -> "EncoderOutput":
        """Returns one batch with the utterances of several ones, padded with zeros to the longest."""
        width = max(out.h_BFD.shape[1] for out in outs)

        def joined(states: "Iterable[Tensor]") -> Tensor:
            return torch.cat([functional.pad(one, (0, 0, 0, width - one.shape[1])) for one in states])

        layers = [out.layers for out in outs if out.layers is not None]
        return EncoderOutput(
            joined(out.h_BFD for out in outs),
            torch.cat([out.frame_lengths_B for out in outs]),
            torch.cat([out.context_lengths_B for out in outs]),
            tuple(map(joined, zip(*layers, strict=True))) if layers else None,
        )


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """A named part of a model: the unit of freezing and of layer-wise learning rates.

    Attributes:
        name: str, name of the group, such as ``layers.3``.
        modules: Modules of the group. A frozen group has them in eval mode.
        loose: Parameters of the group that belong to none of ``modules``.
        lr_scale: float, factor on the learning rate of the optimizer.
    """

    name: str
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()
    lr_scale: float = 1.0

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields each parameter with its name in its module. Loose parameters have an empty name."""
        for module in self.modules:
            yield from module.named_parameters()
        yield from (("", parameter) for parameter in self.loose)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields each parameter of the group."""
        yield from (parameter for _, parameter in self.named_parameters())


class SpeechEncoder(nn.Module, ABC):
    """A pretrained speech encoder: waveforms in, states and exact lengths out.

    Padding never changes a result. The states up to ``frame_lengths_B`` equal the states of the utterance alone.

    Attributes:
        dim: int, number of features of a state.
        max_s: float, longest utterance that the encoder can take, in seconds. None if there is no limit.
        masked_share: float, fraction of frames masked by SpecAugment in the last forward pass. None before masking.
        cut_to: int, number of layers kept by `cut`. None if the encoder is whole.
        window, tail_s: Input window of Whisper, see `ssl_asr.models.whisper.WhisperBackbone`. None for encoders without
            a window.
        net: The model of transformers with the weights.
        lora_targets: Names of the linear layers that get LoRA adapters by default: queries and values of attention.
    """

    dim: int
    max_s: Seconds | None = None
    masked_share: float | None = None
    cut_to: int | None = None
    window: Window | None = None
    tail_s: Seconds | None = None
    net: Any
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")

    if TYPE_CHECKING:

        def __call__(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
            """See `forward`."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of transformer layers in the pretrained model. `cut` does not change it."""

    @property
    def top_layer(self) -> int:
        """Number of transformer layers that run."""
        return self.n_layers if self.cut_to is None else self.cut_to

    @property
    @abstractmethod
    def min_samples(self) -> Samples:
        """Shortest input that gives at least one frame. 0 if the encoder takes inputs of any length."""

    @abstractmethod
    def mask_with(self, augment: SpecAugment) -> None:
        """Applies SpecAugment in train mode. Call it before `layer_groups`."""

    @abstractmethod
    def drop_layers(self, probability: float) -> None:
        """Sets LayerDrop (Fan et al., 2020): each layer is skipped with this probability in train mode."""

    @abstractmethod
    def cut(self, layers: int) -> None:
        """Keeps the lowest ``layers`` layers and removes the norm after the last layer, if there is one."""

    @abstractmethod
    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """Encodes a padded batch.

        Args:
            waveform_BT: float32, shape (batch, samples), 16 kHz, zero-padded.
            lengths_B: int64 on the CPU, shape (batch,), number of samples.
            layers: bool, return the states of all layers.
        """

    @abstractmethod
    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frames for each number of samples, in exact integer arithmetic."""

    @abstractmethod
    def layer_groups(self) -> Sequence[LayerGroup]:
        """Partition of the trainable parameters, from the lowest group to the highest."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data for `ssl_asr.models.loading.rebuild`. ``encoder`` is the class, as `class_path` spells it."""

    @classmethod
    @abstractmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """Builds an encoder of the same architecture with random weights."""

    @abstractmethod
    def compile_layers(self, backend: str) -> None:
        """Compiles the transformer layers in place with `torch.compile`, for inputs of any length."""

    def budget_s(self, given: Seconds | None) -> Seconds:
        """Computed seconds in a batch that is not trained on: ``given``, or 120 if it is None."""
        return 120.0 if given is None else given

    def encoded_s(self, durations_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of audio that the encoder computes for utterances, at most.

        Args:
            durations_N: float64, duration of each utterance in seconds.
        """
        return durations_N

    def as_weights(self, features: Tensor) -> Tensor:
        """Casts the input of ``net``, which is computed in float32, to the dtype of the weights."""
        return features.to(next(self.net.parameters()).dtype)

    def set_window(self, window: Window | None, tail_s: Seconds | None) -> None:
        """Changes the input window. None leaves a value as it is.

        Raises:
            ConfigError: A value is given and this encoder has no window.
        """
        if window is not None or tail_s is not None:
            key, value = ("window", window) if window is not None else ("tail_s", tail_s)
            raise ConfigError(key, f"got {value}, and only Whisper encoders have a window", "remove window and tail_s")

    def with_ctc_head(self, head: nn.Linear) -> "PreTrainedModel":
        """The ``…ForCTC`` model of transformers that shares this encoder's weights.

        Args:
            head: Output layer, with the blank in row 0.

        Raises:
            CheckpointError: transformers has no such class for this family.
        """
        raise CheckpointError("model", f"transformers has no class for CTC on a {type(self).__name__}")

    def feature_extractor(self) -> "FeatureExtractionMixin":
        """The feature extractor of transformers that computes the input of ``net``.

        Raises:
            CheckpointError: transformers has none for this family.
        """
        raise CheckpointError("model", f"transformers has no feature extractor for a {type(self).__name__}")

    def traceable(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """Parts that ONNX has no operators for, each as the module that has it, its name there, and its replacement.

        Default: none.
        """
        yield from ()


class Backbone(Protocol):
    """A ``backbone`` option: the source of the pretrained weights and the settings of the encoder.

    Attributes:
        model_types: Values of ``model_type`` in config.json that this option can load.
        tasks: Tasks that this option supports: a subset of ctc, joint and seq2seq.
    """

    model_types: ClassVar[tuple[str, ...]]
    tasks: ClassVar[frozenset[str]]

    @property
    def source(self) -> str:
        """Local directory, Hub id, or a name known to `ssl_asr.models.checkpoints`."""

    @property
    def revision(self) -> str | None:
        """Hub revision. None for the newest."""

    @property
    def recommended_freeze(self) -> str:
        """Freeze policy used when neither ``freeze`` nor ``freeze_policy`` is given."""

    @property
    def adapter_language(self) -> str | None:
        """Language of the adapters to load, ISO 639-3. None if the checkpoint decides or has no adapters."""

    def load_encoder(self, folder: Path) -> SpeechEncoder:
        """Loads the pretrained encoder of a checkpoint folder in float32."""

    @classmethod
    def pretrained(cls, source: str, language: str | None) -> Self:
        """Options for inference with a checkpoint as published, in ``language`` if the checkpoint has several."""


def frozen_conflicts(backbone: object, names: Iterable[str], run: "TrainConfig") -> Iterator[ConfigError]:
    """An error for each dropout that is set although the encoder is frozen, and so stays in eval mode.

    Args:
        backbone: The ``backbone`` option.
        names: Fields of the option that have an effect in training only.
        run: The config of the run.
    """
    if run.freeze_policy.freezes_encoder:
        for name in names:
            value = getattr(backbone, name)
            if value is not None and value > 0:
                what = f"is {value}, and has no effect on a frozen encoder"
                yield ConfigError(f"backbone.{name}", what, f"use backbone.{name}=null, or freeze=false")


def class_path(described: type) -> str:
    """Import path of a class, such as ``ssl_asr.models.ssl.SSLEncoder``."""
    return f"{described.__module__}.{described.__qualname__}"


def padding_mask(lengths_B: Tensor, width: int, device: torch.device) -> Tensor | None:
    """Mask of shape (B, width): True for content, False for padding. None if no row has padding.

    Does not synchronize with the device.

    Args:
        lengths_B: int64 on the CPU, shape (B,), length of each row.
        width: int, number of columns.
        device: torch.device, device of the mask.
    """
    if bool((lengths_B >= width).all()):
        return None
    return torch.arange(width, device=device)[None] < on_device(lengths_B, device)[:, None]


def is_traced() -> bool:
    """Whether a graph is being traced, for ONNX. A graph must not depend on the lengths in its example."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced


def zero_gradient(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """A zero that gives each trainable parameter a gradient of zero. 0.0 if nothing trains.

    Add it to the output of a step that skips a layer. All ranks must agree on which parameters have gradients.
    """
    return sum(((parameter * 0.0).sum() for parameter in parameters if parameter.requires_grad), 0.0)


def run_layers(
    layers: Iterable[nn.Module],
    h_BFD: Tensor,
    run: Callable[[nn.Module, Tensor], Tensor],
    *,
    layerdrop: float,
    keep: bool,
    always: int = 0,
) -> list[Tensor]:
    """Runs a stack of layers. A skipped layer returns its input.

    Args:
        layers: Layers, from the lowest to the highest.
        h_BFD: float, shape (batch, frames, features), input of the first layer.
        run: ``run(layer, h_BFD)`` computes the output of one layer.
        layerdrop: float in [0, 1), probability of skipping each layer. 0 draws no random numbers.
        keep: bool, return the states of all layers. They can take gigabytes.
        always: int, number of lowest layers that are never skipped.

    Returns:
        The input of the first layer and the states after each layer. Only the last states if ``keep`` is False.
    """
    states = [h_BFD]
    for index, layer in enumerate(layers):
        skipped = index >= always and layerdrop > 0 and float(torch.rand(())) < layerdrop
        h_BFD = h_BFD + zero_gradient(layer.parameters()) if skipped else run(layer, h_BFD)
        states = [*states, h_BFD] if keep else [h_BFD]
    return states


class FrameCounter(Protocol):
    """Anything that maps samples to frames: an encoder, or a module that joins frames."""

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frames for each number of samples, in exact integer arithmetic."""


def one_frame_length(counter: FrameCounter, samples: Samples) -> int:
    """Number of frames of one utterance."""
    return int(counter.frame_lengths(torch.tensor([samples])))
