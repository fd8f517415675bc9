"""Parakeet-CTC: log-mel spectrograms computed on the device, 8x subsampling, and a Fast Conformer encoder.

The layers and the weights come from transformers (Rekesh et al., 2023, arXiv:2305.05084). The spectrogram is our own:
it is batched, and padding does not change it. Batch norm always uses the statistics of pretraining.

    samples     16,000 per second    lengths_B
    mel frames     100 per second    n // 160
    frames        12.5 per second    ceil(n / 2), three times
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import read_json
from ssl_asr.models.encoder import (
    EncoderOutput,
    LayerGroup,
    SpeechEncoder,
    class_path,
    frozen_conflicts,
    padding_mask,
    run_layers,
)
from ssl_asr.models.loading import load_pretrained, new_net, non_null
from ssl_asr.models.spec_augment import SpecAugment
from ssl_asr.models.spectrograms import PowerSpectrum, center_bands, slaney_filters
from ssl_asr.types import BLANK_ID, Dropout, ModelName, RecommendedFreeze, Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    from ssl_asr.config.schemas import TrainConfig

FRAME: Samples = 400
HOP: Samples = 160
N_FFT: Samples = 512
PREEMPHASIS = 0.97
# A variance needs two frames.
_MIN_MEL_FRAMES = 2
_LOG_FLOOR = 2.0**-24
_STD_FLOOR = 1e-5
# Settings of preprocessor_config.json that `LogMel` implements.
_PREPROCESSOR = {"hop_length": HOP, "n_fft": N_FFT, "win_length": FRAME, "preemphasis": PREEMPHASIS}


class LogMel(nn.Module):
    """Log-mel spectrogram with preemphasis, normalized per band over the frames of each utterance.

    The result for each utterance equals that of transformers' ``ParakeetFeatureExtractor`` for it alone.

    Args:
        n_mels: int, number of mel bands.
    """

    filters_MF: Tensor

    def __init__(self, *, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("filters_MF", slaney_filters(n_mels, n_fft=N_FFT).T, persistent=False)
        window_T = torch.hann_window(FRAME, periodic=False)
        self.power: nn.Module = PowerSpectrum(n_fft=N_FFT, hop=HOP, window_T=window_T, padding="constant")

    @staticmethod
    def frame_lengths(lengths_B: Tensor) -> Tensor:
        """Number of 10 ms frames for each number of samples."""
        return lengths_B.div(HOP, rounding_mode="floor")

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Computes ``mel_BMF``, float32. Padding is zero.

        Args:
            waveform_BT: float, shape (batch, samples), 16 kHz, zero-padded.
            lengths_B: int64 on the CPU, shape (batch,), number of samples.
        """
        frames_B = self.frame_lengths(lengths_B)
        with torch.autocast(waveform_BT.device.type, enabled=False):
            log_BMF = self._log_mel(waveform_BT.float(), lengths_B)[..., : waveform_BT.shape[1] // HOP]
        centered_BFM, variance_B1M = center_bands(log_BMF.transpose(1, 2), frames_B.clamp(min=_MIN_MEL_FRAMES))
        return (centered_BFM / (variance_B1M.sqrt() + _STD_FLOOR)).transpose(1, 2)

    def _log_mel(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        emphasized_BT = waveform_BT - PREEMPHASIS * functional.pad(waveform_BT[:, :-1], (1, 0))
        # The filter writes into the first sample of the padding.
        mask_BT = padding_mask(lengths_B, waveform_BT.shape[1], waveform_BT.device)
        emphasized_BT = emphasized_BT if mask_BT is None else emphasized_BT * mask_BT
        log_BMF: Tensor = (self.filters_MF @ self.power(emphasized_BT) + _LOG_FLOOR).log()
        return log_BMF


class FixedBatchNorm(nn.BatchNorm1d):
    """Batch norm that stays in eval mode, so it uses the statistics of pretraining and does not update them.

    Statistics of a batch would depend on padding and on the other utterances. Scale and bias can train.
    """

    def train(self, mode: bool = True) -> Self:
        """Has no effect: the module stays in eval mode."""
        return super().train(False)

    @classmethod
    def like(cls, norm: nn.BatchNorm1d) -> Self:
        """A copy of a batch norm."""
        fixed = cls(norm.num_features, eps=norm.eps)
        fixed.load_state_dict(norm.state_dict())
        return fixed.eval()


class ParakeetEncoder(SpeechEncoder):
    """The encoder of Parakeet.

    Args:
        net: ``ParakeetEncoder`` of transformers.
    """

    def __init__(self, *, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        config: Any = net.config
        self.dim: int = config.hidden_size
        self.log_mel = LogMel(n_mels=config.num_mel_bins)
        layers: Any = net.layers
        for layer in layers:
            layer.conv.norm = FixedBatchNorm.like(layer.conv.norm)
        self.augment: SpecAugment | None = None
        self.layerdrop = 0.0

    @property
    def n_layers(self) -> int:
        """See `SpeechEncoder`."""
        layers: int = self.net.config.num_hidden_layers
        return layers

    @property
    def min_samples(self) -> Samples:
        """Shortest input that gives a frame: 320 samples (20 ms), which are two frames of the spectrogram."""
        return _MIN_MEL_FRAMES * HOP

    def mask_with(self, augment: SpecAugment) -> None:
        """Masks spans of log-mel frames and bands in train mode. See `SpeechEncoder`."""
        self.augment = augment

    def drop_layers(self, probability: float) -> None:
        """See `SpeechEncoder`."""
        self.layerdrop = probability

    def cut(self, layers: int) -> None:
        """See `SpeechEncoder`."""
        if layers < self.n_layers:
            self.cut_to = layers
            self.net.layers = self.net.layers[:layers]

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of 80 ms frames for each number of samples."""
        mel_lengths_B = self.log_mel.frame_lengths(lengths_B)
        mel_lengths_B = mel_lengths_B.where(mel_lengths_B >= _MIN_MEL_FRAMES, 0)
        return self._subsampled(mel_lengths_B)

    def _subsampled(self, mel_lengths_B: Tensor) -> Tensor:
        """Frames after the convolutions: ``floor((n + 2 * padding - kernel) / stride) + 1`` for each convolution."""
        subsampling = self.net.subsampling
        shrink = subsampling.kernel_size - 2 * subsampling.padding
        for _ in range(subsampling.num_layers):
            mel_lengths_B = (mel_lengths_B - shrink).div(subsampling.stride, rounding_mode="floor") + 1
        return mel_lengths_B

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """See `SpeechEncoder`."""
        frame_lengths_B = self.frame_lengths(lengths_B)
        h_BFD = self._front(waveform_BT, lengths_B)
        positions_BPD = self.net.encode_positions(h_BFD)
        h_BFD = functional.dropout(h_BFD, p=self.net.dropout, training=self.training)
        positions_BPD = functional.dropout(positions_BPD, p=self.net.dropout_positions, training=self.training)
        mask_BF = padding_mask(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
        # The convolutions of the layers write zeros into frames that are masked as queries.
        mask = None if mask_BF is None else (mask_BF[:, None] & mask_BF[..., None])[:, None]

        def run(layer: nn.Module, h_BFD: Tensor) -> Tensor:
            states_BFD: Tensor = layer(h_BFD, attention_mask=mask, position_embeddings=positions_BPD)
            return states_BFD

        layerdrop = self.layerdrop if self.training else 0.0
        states = run_layers(self.net.layers, h_BFD, run, layerdrop=layerdrop, keep=layers)
        return EncoderOutput(states[-1], frame_lengths_B, frame_lengths_B, tuple(states) if layers else None)

    def _front(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The input of the first layer."""
        mel_lengths_B = self.log_mel.frame_lengths(lengths_B)
        mel_BMF = self.log_mel(waveform_BT, lengths_B)
        if self.training and self.augment is not None:
            mel_BMF, self.masked_share = self.augment.mask_spectrogram(mel_BMF, mel_lengths_B)
        mel_mask = padding_mask(mel_lengths_B, mel_BMF.shape[-1], mel_BMF.device)
        subsampled_BFD: Tensor = self.net.subsampling(self.as_weights(mel_BMF).transpose(1, 2), mel_mask)
        scale: float = self.net.input_scale
        return subsampled_BFD * scale

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``feature_encoder`` (the convolutions of the subsampling), ``projection`` and ``layers.N``."""
        return [
            LayerGroup("feature_encoder", (self.net.subsampling.layers,)),
            LayerGroup("projection", (self.net.subsampling.linear,)),
            *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(self.net.layers)),
        ]

    def description(self) -> dict[str, Any]:
        """See `SpeechEncoder`."""
        return {"encoder": class_path(type(self)), "config": self.net.config.to_dict(), "cut_to": self.cut_to}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """See `SpeechEncoder`."""
        encoder = cls(net=new_net(description["config"]))
        if description["cut_to"] is not None:
            encoder.cut(description["cut_to"])
        return encoder

    def separate_layers(self) -> Iterator[tuple[nn.Module, str | None]]:
        """See `ssl_asr.models.layers.Layered`. Layers are called."""
        return ((layer, None) for layer in self.net.layers)

    def traceable(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """See `SpeechEncoder`."""
        from ssl_asr.models.traceable import TraceablePower

        yield self.log_mel, "power", TraceablePower(cast(PowerSpectrum, self.log_mel.power))

    def with_ctc_head(self, head: nn.Linear) -> "PreTrainedModel":
        """See `SpeechEncoder`. The output layer of transformers' class is a convolution over one frame."""
        from transformers import ParakeetCTCConfig, ParakeetForCTC

        settings = {"vocab_size": head.out_features, "pad_token_id": BLANK_ID}
        with torch.device("meta"):
            model: Any = ParakeetForCTC(ParakeetCTCConfig(**settings, encoder_config=self.net.config.to_dict()))
            layer = nn.Conv1d(head.in_features, head.out_features, 1)
        layer.weight, layer.bias = nn.Parameter(head.weight.detach()[..., None]), head.bias
        model.encoder, model.ctc_head = self.net, layer
        whole: PreTrainedModel = model.eval()
        return whole

    def feature_extractor(self) -> "FeatureExtractionMixin":
        """See `SpeechEncoder`."""
        from transformers import ParakeetFeatureExtractor

        return ParakeetFeatureExtractor(feature_size=self.net.config.num_mel_bins)

    def compile_layers(self, backend: str) -> None:
        """See `SpeechEncoder`."""
        for layer in self.net.layers:
            layer.compile(backend=backend, dynamic=True)


@dataclass(frozen=True, kw_only=True)
class ParakeetBackbone:
    """A Parakeet-CTC checkpoint. Its encoder is used. Its output layer has subword tokens and is not.

    Attributes:
        source: str, local directory or Hub id.
        revision: str, Hub revision. None for the newest.
        recommended_freeze: str, freeze policy used when neither ``freeze`` nor ``freeze_policy`` is given.
        dropout: float in [0, 1), dropout before the first layer. None keeps the value of the checkpoint.
        attention_dropout: float in [0, 1), dropout on attention weights. None keeps the value of the checkpoint.
        activation_dropout: float in [0, 1), dropout inside the feed-forward. None keeps the value of the checkpoint.
        layerdrop: float in [0, 1), probability of skipping each layer in training. None and 0 skip no layer. The value
            of the checkpoint does not apply.
        attention: str, attention implementation of transformers. None takes transformers' default.
        gradient_checkpointing: bool, recompute layers in the backward pass, which saves memory and costs time.
    """

    model_types: ClassVar[tuple[str, ...]] = ("parakeet_ctc", "parakeet_encoder")
    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    source: ModelName
    revision: str | None
    recommended_freeze: RecommendedFreeze
    dropout: Dropout | None = None
    attention_dropout: Dropout | None = None
    activation_dropout: Dropout | None = None
    layerdrop: Dropout | None = None
    attention: Literal["eager", "sdpa"] | None = None
    gradient_checkpointing: bool = False

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """Dropouts that have no effect because the encoder is frozen."""
        names = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
        return frozen_conflicts(self, names, run)

    @property
    def adapter_language(self) -> None:
        """Parakeet has no adapters for languages."""

    @classmethod
    def pretrained(cls, source: str, language: str | None) -> Self:  # noqa: ARG003
        """See `Backbone`."""
        return cls(source=source, revision=None, recommended_freeze="none")

    def load_encoder(self, folder: Path) -> ParakeetEncoder:
        """Loads the pretrained encoder of a checkpoint folder in float32.

        Raises:
            CheckpointError: The weights cannot be loaded, or the model was trained on other spectrograms.
        """
        self._check_preprocessor(folder)
        net = self._load_net(folder)
        if self.gradient_checkpointing:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        encoder = ParakeetEncoder(net=net)
        encoder.drop_layers(self.layerdrop or 0.0)
        return encoder

    def _load_net(self, folder: Path) -> Any:
        from transformers import AutoConfig, AutoModel

        config: Any = AutoConfig.from_pretrained(folder)
        own = getattr(config, "encoder_config", config)
        for name, value in non_null(self, ("dropout", "attention_dropout", "activation_dropout")).items():
            setattr(own, name, value)
        options = {"config": config} | ({} if self.attention is None else {"attn_implementation": self.attention})
        model: Any = load_pretrained(AutoModel, folder, (), options)
        return model if own is config else model.encoder

    def _check_preprocessor(self, folder: Path) -> None:
        found = read_json(folder / "preprocessor_config.json")
        for key, expected in _PREPROCESSOR.items():
            if found.get(key, expected) != expected:
                what = f"{key} of preprocessor_config.json is {found[key]}, supported is {expected}"
                raise CheckpointError(self.source, what, "choose another checkpoint")
