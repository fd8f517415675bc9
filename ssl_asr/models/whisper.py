"""Whisper: log-mel spectrograms computed on the device, the encoder with a choice of window, and the decoder.

The weights are in transformers' modules. The forward passes are our own: transformers' encoder takes windows of 30
seconds only, and its decoder has no padding mask for the encoder states.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import read_json
from ssl_asr.models.encoder import (
    EncoderOutput,
    LayerGroup,
    SpeechEncoder,
    Window,
    class_path,
    frozen_conflicts,
    padding_mask,
    run_layers,
)
from ssl_asr.models.layers import by_method, with_methods
from ssl_asr.models.loading import load_pretrained, non_null, refuse_to_save
from ssl_asr.models.ragged import Frames, frames_of, leave_out_of_graphs, self_attention
from ssl_asr.models.spec_augment import SpecAugment
from ssl_asr.models.spectrograms import PowerSpectrum, slaney_filters
from ssl_asr.models.transformer import TransformerDecoder, drop, feed_forward, run_layer
from ssl_asr.types import (
    SAMPLE_RATE,
    Dropout,
    ModelName,
    RecommendedFreeze,
    Samples,
    Seconds,
    TailRange,
    TailSeconds,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    from ssl_asr.config.schemas import TrainConfig

N_FFT: Samples = 400
HOP: Samples = 160
WINDOW_S: Seconds = 30.0
WINDOW_SAMPLES: Samples = int(WINDOW_S * SAMPLE_RATE)
# The second convolution halves the frame rate.
SAMPLES_PER_FRAME: Samples = 2 * HOP


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, batched, on the device.

    The result for each utterance equals that of transformers' ``WhisperFeatureExtractor`` for it alone: the dynamic
    range is limited relative to the maximum of the utterance, not of the batch.

    Args:
        n_mels: int, number of mel bands: 128 for large-v3, 80 for the other models.
    """

    filters_FM: Tensor

    def __init__(self, *, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("filters_FM", slaney_filters(n_mels, n_fft=N_FFT), persistent=False)
        window_T = torch.hann_window(N_FFT)
        self.power: nn.Module = PowerSpectrum(n_fft=N_FFT, hop=HOP, window_T=window_T, padding="reflect")

    def of_lengths(self, waveform_BT: Tensor, frames_B: Tensor) -> Tensor:
        """Computes `forward` for the largest of the numbers of frames ``frames_B``, int64 on the CPU."""
        mel_BMF: Tensor = self(waveform_BT, int(frames_B.max()))
        return mel_BMF

    def forward(self, waveform_BT: Tensor, frames: int) -> Tensor:
        """Computes ``mel_BMF``, float32.

        Args:
            waveform_BT: float, shape (batch, samples), 16 kHz, zero-padded.
            frames: int, number of frames to compute, at most 3,000.
        """
        samples = frames * HOP
        # With one more window of silence, the last frames have the values that they have in a 30 s window.
        room = samples if samples >= WINDOW_SAMPLES else samples + N_FFT
        waveform_BT = functional.pad(waveform_BT[:, :room], (0, max(0, room - waveform_BT.shape[1])))
        with torch.autocast(waveform_BT.device.type, enabled=False):
            return self._log_mel(self.power(waveform_BT.float())[..., :-1])[..., :frames]

    def _log_mel(self, power_BFT: Tensor) -> Tensor:
        log_BMT = (self.filters_FM.T @ power_BFT).clamp(min=1e-10).log10()
        floor_B = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_BMT, floor_B) + 4.0) / 4.0


class WhisperEncoder(SpeechEncoder):
    """Whisper's encoder.

    With ``window="real"``, it encodes the utterance and a tail of silence, with the positions of the start of the
    window. Padding is zero before each convolution and is not computed in the layers. So the states of an utterance do
    not depend on the batch. With ``window="30s"``, every utterance gets the window of pretraining. In both cases
    ``frame_lengths_B`` counts the frames of the utterance, 50 per second.

    Args:
        net: ``WhisperEncoder`` of transformers. Only its weights are used.
        window: See `WhisperBackbone`.
        tail_s: See `WhisperBackbone`.
        train_tail_s: See `WhisperBackbone`.
    """

    max_s: Seconds | None = WINDOW_S

    def __init__(
        self,
        *,
        net: nn.Module,
        window: Window,
        tail_s: Seconds,
        train_tail_s: Sequence[float] | None,
    ) -> None:
        super().__init__()
        refuse_to_save(net, "Whisper's encoder")
        self.net = net
        self.window: Window = window
        self.tail_s: Seconds = tail_s
        self.train_tail_s = None if train_tail_s is None else (train_tail_s[0], train_tail_s[1])
        config: Any = net.config
        self.dim: int = config.d_model
        self.net.embed_positions.requires_grad_(False)
        self.log_mel = LogMel(n_mels=config.num_mel_bins)
        self.gradient_checkpointing = False
        self.augment: SpecAugment | None = None
        self.layerdrop = 0.0
        self._layer: Callable[..., Tensor] = _encoder_layer

    def drop_layers(self, probability: float) -> None:
        """See `SpeechEncoder`."""
        self.layerdrop = probability

    def mask_with(self, augment: SpecAugment) -> None:
        """Masks spans of log-mel frames and bands in train mode. See `SpeechEncoder`."""
        self.augment = augment

    def _hide(self, mel_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Replaces masked frames and bands with zeros, which are close to the mean of normalized log-mel."""
        assert self.augment is not None
        mel_lengths_B = lengths_B.div(HOP, rounding_mode="floor").clamp(max=mel_BMF.shape[-1])
        mel_BMF, self.masked_share = self.augment.mask_spectrogram(mel_BMF, mel_lengths_B)
        return mel_BMF

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """One frame per 320 samples, rounded up, and at most 1,500 frames."""
        return lengths_B.add(SAMPLES_PER_FRAME - 1).div(SAMPLES_PER_FRAME, rounding_mode="floor").clamp(max=1500)

    def _context_samples(self, lengths_B: Tensor) -> Tensor:
        if self.window == "30s":
            return torch.full_like(lengths_B, WINDOW_SAMPLES)
        tail_s = self.tail_s
        if self.training and self.train_tail_s is not None:
            low, high = self.train_tail_s
            # One draw per batch: one draw per utterance would pad every row to the longest tail.
            tail_s = low + (high - low) * float(torch.rand(()))
        return (lengths_B + int(tail_s * SAMPLE_RATE)).clamp(max=WINDOW_SAMPLES)

    @property
    def n_layers(self) -> int:
        """See `SpeechEncoder`."""
        layers: int = self.net.config.encoder_layers
        return layers

    @property
    def min_samples(self) -> Samples:
        """0: the tail of silence makes any utterance long enough."""
        return 0

    def cut(self, layers: int) -> None:
        """See `SpeechEncoder`."""
        if layers < self.n_layers:
            self.cut_to = layers
            self.net.layers = self.net.layers[:layers]
            self.net.layer_norm = nn.Identity()

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """See `SpeechEncoder`."""
        samples_B = self._context_samples(lengths_B)
        mel_lengths_B = (samples_B + HOP - 1).div(HOP, rounding_mode="floor")
        context_lengths_B = (mel_lengths_B + 1).div(2, rounding_mode="floor")
        mel_BMF = self.as_weights(self.log_mel.of_lengths(waveform_BT, mel_lengths_B))
        if self.training and self.augment is not None:
            mel_BMF = self._hide(mel_BMF, lengths_B)
        mel_mask = padding_mask(mel_lengths_B, mel_BMF.shape[-1], mel_BMF.device)
        # Convolutions pad with zeros, so the padding of the batch must be zero before each convolution.
        x = functional.gelu(self.net.conv1(_zero_padding(mel_BMF, mel_mask)))
        x = functional.gelu(self.net.conv2(_zero_padding(x, mel_mask)))
        h_BFD = x.transpose(1, 2)
        h_BFD = h_BFD + self.net.embed_positions.weight[: h_BFD.shape[1]]
        states = self._states(drop(self.net, h_BFD), context_lengths_B, keep=layers)
        kept = tuple(states) if layers else None
        return EncoderOutput(states[-1], self.frame_lengths(lengths_B), context_lengths_B, kept)

    def _states(self, h_BFD: Tensor, context_lengths_B: Tensor, *, keep: bool) -> list[Tensor]:
        """Padded states before the first layer and after each layer, or only the last ones. See `run_layers`."""
        frames = frames_of(context_lengths_B, h_BFD.shape[1], h_BFD.device)
        recompute = self.gradient_checkpointing and self.training

        def run(layer: nn.Module, x: Tensor) -> Tensor:
            states: Tensor = run_layer(self._layer, layer, x, frames, recompute=recompute)
            return states

        layerdrop = self.layerdrop if self.training else 0.0
        states = run_layers(self.net.layers, frames.enter(h_BFD), run, layerdrop=layerdrop, keep=keep)
        states[-1] = self.net.layer_norm(states[-1])
        return [frames.leave(state) for state in states]

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``feature_encoder`` (the two convolutions), ``layers.N`` and ``final_norm``.

        The position embeddings are fixed sinusoids and belong to no group.
        """
        return [
            LayerGroup("feature_encoder", (self.net.conv1, self.net.conv2)),
            *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(self.net.layers)),
            *([LayerGroup("final_norm", (self.net.layer_norm,))] if self.cut_to is None else []),
        ]

    def budget_s(self, given: Seconds | None) -> Seconds:
        """Without a number, 16 windows of 30 seconds, or 180 seconds with ``window="real"``. See `SpeechEncoder`."""
        default_s = 16 * WINDOW_S if self.window == "30s" else 180.0
        return default_s if given is None else given

    def encoded_s(self, durations_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """30 with ``window="30s"``, else the duration and the longest tail, of training or inference."""
        if self.window == "30s":
            return np.full_like(durations_N, WINDOW_S)
        longest_s = max([self.tail_s, *(self.train_tail_s or ())])
        computed_N: NDArray[np.float64] = np.minimum(durations_N + longest_s, WINDOW_S)
        return computed_N

    def set_window(self, window: Window | None, tail_s: Seconds | None) -> None:
        """Changes the input window. None leaves a value as it is."""
        self.window = self.window if window is None else window
        self.tail_s = self.tail_s if tail_s is None else tail_s

    def description(self) -> dict[str, Any]:
        """See `SpeechEncoder`."""
        return {
            "encoder": class_path(type(self)),
            "config": self.net.config.to_dict(),
            "window": self.window,
            "tail_s": self.tail_s,
            "train_tail_s": None if self.train_tail_s is None else list(self.train_tail_s),
            "cut_to": self.cut_to,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """See `SpeechEncoder`."""
        encoder_net, _ = _new_nets(description["config"])
        return cls._from_net(encoder_net, description)

    @classmethod
    def _from_net(cls, net: nn.Module, description: dict[str, Any]) -> Self:
        encoder = cls(net=net, **{key: description[key] for key in ("window", "tail_s", "train_tail_s")})
        if description["cut_to"] is not None:
            encoder.cut(description["cut_to"])
        return encoder

    def feature_extractor(self) -> "FeatureExtractionMixin":
        """See `SpeechEncoder`."""
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.net.config.num_mel_bins)

    def traceable(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """See `SpeechEncoder`."""
        from ssl_asr.models.traceable import TraceableLogMel

        silence_s = WINDOW_S if self.window == "30s" else self.tail_s
        yield self, "log_mel", TraceableLogMel(self.log_mel, int(silence_s * SAMPLE_RATE) + N_FFT)

    def with_ctc_head(self, head: nn.Linear) -> "PreTrainedModel":
        """See `SpeechEncoder`."""
        what = "is a Whisper encoder with a CTC layer, and transformers has no class for it"
        raise CheckpointError("model", what, "train task=seq2seq, or task=ctc on another family, such as wav2vec2_base")

    def separate_layers(self) -> Iterator[tuple[nn.Module, str | None]]:
        """See `ssl_asr.models.layers.Layered`."""
        yield from with_methods(self.net.layers, self._layer)
        self._layer = by_method

    def compile_layers(self, backend: str) -> None:
        """See `SpeechEncoder`."""
        leave_out_of_graphs()
        self._layer = torch.compile(self._layer, backend=backend, dynamic=True)


def _encoder_layer(layer: Any, x: Tensor, frames: Frames) -> Tensor:
    x = x + drop(layer, self_attention(layer.self_attn, layer.self_attn_layer_norm(x), frames))
    return feed_forward(layer, x)


def _zero_padding(x_BMF: Tensor, mask_BF: Tensor | None) -> Tensor:
    return x_BMF if mask_BF is None else x_BMF * mask_BF[:, None]


def _new_nets(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Transformers' encoder and decoder with random weights."""
    from transformers import WhisperConfig, WhisperModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = WhisperModel(WhisperConfig(**settings)).to(torch.float32)
    return model.encoder, model.decoder


class WhisperSeq2Seq(TransformerDecoder):
    """A Whisper model: encoder, decoder, and an output layer that shares its weights with the token embedding.

    Args:
        encoder: The encoder.
        net: ``WhisperDecoder`` of transformers. Only its weights are used.
        generation: dict, all settings of the checkpoint's generation_config.json, such as ``suppress_tokens`` and
            ``begin_suppress_tokens``.
    """

    def __init__(self, *, encoder: WhisperEncoder, net: nn.Module, generation: dict[str, Any]) -> None:
        super().__init__(net=net)
        refuse_to_save(net, "Whisper's decoder")
        self.encoder = encoder
        self.generation = generation
        self.gradient_checkpointing = encoder.gradient_checkpointing

    def decoder_groups(self) -> Sequence[LayerGroup]:
        """``decoder.embed``, ``decoder.layers.N`` and ``decoder.final_norm``."""
        return [
            LayerGroup("decoder.embed", (self.net.embed_tokens, self.net.embed_positions)),
            *(LayerGroup(f"decoder.layers.{i}", (layer,)) for i, layer in enumerate(self.net.layers)),
            LayerGroup("decoder.final_norm", (self.net.layer_norm,)),
        ]

    def whole(self, generation: dict[str, Any]) -> "PreTrainedModel":
        """``WhisperForConditionalGeneration`` of transformers that shares these weights.

        Args:
            generation: Settings of its generation config.
        """
        from transformers import GenerationConfig, WhisperForConditionalGeneration

        with torch.device("meta"):
            model: Any = WhisperForConditionalGeneration(self.net.config)
        model.model.encoder, model.model.decoder = self.encoder.net, self.net
        model.tie_weights()
        # Not derived from the model config: such a GenerationConfig loses its language ids when it is loaded.
        model.generation_config = GenerationConfig(**generation)
        whole: PreTrainedModel = model.eval()
        return whole

    def description(self) -> dict[str, Any]:
        """Plain data for `from_description`: the description of the encoder, and ``generation``."""
        return {**self.encoder.description(), "generation": self.generation}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """Builds a model of the same architecture with random weights."""
        encoder_net, decoder_net = _new_nets(description["config"])
        encoder = WhisperEncoder._from_net(encoder_net, description)
        return cls(encoder=encoder, net=decoder_net, generation=description["generation"])


@dataclass(frozen=True, kw_only=True)
class WhisperBackbone:
    """A Whisper checkpoint and the window of its encoder.

    Attributes:
        source: str, local directory, Hub id, or a name known to `ssl_asr.models.checkpoints`.
        revision: str, Hub revision. None for the newest.
        window: ``real`` encodes the utterance and ``tail_s`` of silence. ``30s`` pads to 30 seconds, as in
            pretraining.
        tail_s: float, seconds of silence after the utterance, for ``window=real``.
        train_tail_s: [low, high] in seconds. In training, the tail of each batch is drawn from it, so the model learns
            to emit the end token after any amount of silence. None always uses ``tail_s``.
        recommended_freeze: str, freeze policy used when neither ``freeze`` nor ``freeze_policy`` is given.
        dropout: float in [0, 1), dropout after each sublayer. None keeps the value of the checkpoint, which is 0 in
            OpenAI's models.
        attention_dropout: float in [0, 1), dropout on attention weights. None keeps the value of the checkpoint.
        activation_dropout: float in [0, 1), dropout inside the feed-forward. None keeps the value of the checkpoint.
        layerdrop: float in [0, 1), probability of skipping each encoder layer in training. None and 0 skip no layer.
        gradient_checkpointing: bool, recompute layers in the backward pass, which saves memory and costs time.
    """

    model_types: ClassVar[tuple[str, ...]] = ("whisper",)
    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint", "seq2seq"})

    source: ModelName
    revision: str | None
    window: Window
    tail_s: TailSeconds
    train_tail_s: TailRange | None
    recommended_freeze: RecommendedFreeze
    dropout: Dropout | None = None
    attention_dropout: Dropout | None = None
    activation_dropout: Dropout | None = None
    layerdrop: Dropout | None = None
    gradient_checkpointing: bool = False

    @property
    def adapter_language(self) -> None:
        """Whisper has no adapters for languages."""

    @classmethod
    def pretrained(cls, source: str, language: str | None) -> Self:  # noqa: ARG003
        """Options for inference with a checkpoint as published: with the 30-second window of pretraining."""
        return cls(source=source, revision=None, window="30s", tail_s=1.0, train_tail_s=None, recommended_freeze="none")

    def load_encoder(self, folder: Path) -> WhisperEncoder:
        """Loads the pretrained encoder of a checkpoint folder in float32."""
        return self._load(folder)[0]

    def load_seq2seq(self, folder: Path) -> WhisperSeq2Seq:
        """Loads the pretrained encoder and decoder of a checkpoint folder in float32, with all generation settings."""
        encoder, decoder = self._load(folder)
        generation = read_json(folder / "generation_config.json")
        return WhisperSeq2Seq(encoder=encoder, net=decoder, generation=generation)

    def _load(self, folder: Path) -> tuple[WhisperEncoder, nn.Module]:
        """The encoder, and transformers' decoder."""
        from transformers import WhisperForConditionalGeneration

        overrides = non_null(self, ("dropout", "attention_dropout", "activation_dropout"))
        whole: Any = load_pretrained(WhisperForConditionalGeneration, folder, ("proj_out",), overrides)
        encoder = WhisperEncoder(
            net=whole.model.encoder, window=self.window, tail_s=self.tail_s, train_tail_s=self.train_tail_s
        )
        encoder.gradient_checkpointing = self.gradient_checkpointing
        encoder.drop_layers(self.layerdrop or 0.0)
        return encoder, whole.model.decoder

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """Dropouts that have no effect because the encoder is frozen."""
        # In seq2seq, dropouts are also the decoder's.
        dropouts = ("dropout", "attention_dropout", "activation_dropout") if run.task.name != "seq2seq" else ()
        return frozen_conflicts(self, (*dropouts, "layerdrop"), run)
