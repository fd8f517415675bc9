"""Whisper: log-mel on the device, the encoder at the window one chooses, the decoder.

The weights sit in transformers' modules; the forward passes are ours, since transformers' encoder takes
nothing but 30 s and its decoder knows no padding in the encoder's states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.encoder import EncoderOutput, LayerGroup, no_gradient, padding_mask
from ssl_asr.models.spec_augment import SpecAugment, share
from ssl_asr.models.transformer import TransformerDecoder, attend, drop, feed_forward, keys_values, run_layer
from ssl_asr.types import SAMPLE_RATE, Samples, Seconds

Window = Literal["real", "30s"]

N_FFT: Samples = 400
HOP: Samples = 160
WINDOW_S: Seconds = 30.0
WINDOW_SAMPLES: Samples = int(WINDOW_S * SAMPLE_RATE)
# The second convolution halves the frame rate.
SAMPLES_PER_FRAME: Samples = 2 * HOP


@dataclass(frozen=True, kw_only=True)
class WhisperBackbone:
    """A Whisper checkpoint, and the window its encoder sees.

    Attributes:
        source: a local directory, a Hub id, or a name known to `ssl_asr.models.checkpoints`.
        revision: the Hub revision to pin; null for the newest.
        window: ``real`` encodes only the utterance and ``tail_s`` of silence; ``30s`` pads as in pretraining.
        tail_s: seconds of silence after the utterance, for ``real``.
        train_tail_s: the range a training tail is drawn from, a batch at a time, which keeps the end token
            learnt after any silence; null trains with ``tail_s`` always.
        recommended_freeze: the policy taken where neither ``freeze`` nor ``freeze_policy`` is given.
        layerdrop: how likely an encoder layer is left out of a training step; null and 0 leave none out.
        dropout, attention_dropout, activation_dropout: as transformers names them; null leaves the
            checkpoint's, which is 0 in those of OpenAI.
        gradient_checkpointing: compute each layer again in backward, which saves memory and costs time.
    """

    source: str
    revision: str | None
    window: Window
    tail_s: float
    train_tail_s: list[float] | None
    recommended_freeze: str
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    layerdrop: float | None = None
    gradient_checkpointing: bool = False

    def overrides(self) -> dict[str, Any]:
        """What is to differ from the checkpoint's own config."""
        wanted = {name: getattr(self, name) for name in ("dropout", "attention_dropout", "activation_dropout")}
        return {name: value for name, value in wanted.items() if value is not None}


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, batched on the device, each utterance as if it were alone.

    Equal to transformers' ``WhisperFeatureExtractor`` an utterance at a time: the dynamic range is clamped
    below the utterance's own maximum, never the batch's.

    Args:
        n_mels: 80, or 128 for large-v3.
    """

    filters_FM: Tensor
    window_T: Tensor

    def __init__(self, *, n_mels: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=n_mels,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        filters_FM = torch.from_numpy(filters).to(torch.float32)
        self.register_buffer("filters_FM", filters_FM, persistent=False)
        self.register_buffer("window_T", torch.hann_window(N_FFT), persistent=False)

    def forward(self, waveform_BT: Tensor, frames: int) -> Tensor:
        """The first ``frames`` mel frames of zero-padded samples, ``mel_BMF`` float32; at most 3,000."""
        samples = frames * HOP
        # One window more of silence lets the frames at the end see what they see in 30 s of padding.
        room = samples if samples >= WINDOW_SAMPLES else samples + N_FFT
        waveform_BT = functional.pad(waveform_BT[:, :room], (0, max(0, room - waveform_BT.shape[1])))
        with torch.autocast(waveform_BT.device.type, enabled=False):
            spectrum = torch.stft(
                waveform_BT.float(), N_FFT, HOP, window=self.window_T, center=True, return_complex=True
            )
            power_BFT = spectrum[..., :-1].abs().square()
            log_BMT = (self.filters_FM.T @ power_BFT).clamp(min=1e-10).log10()
            floor_B = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
            return (torch.maximum(log_BMT, floor_B)[..., :frames] + 4.0) / 4.0


class WhisperEncoder(nn.Module):
    """Whisper's encoder behind the `SpeechEncoder` contract.

    With ``window="real"`` it encodes the utterance and its tail of silence, at the positions of the start of
    the window; padding beyond is kept out of the convolutions and the attention, so that an utterance's
    states are those it has alone. With ``window="30s"`` every utterance sees the window of pretraining.
    Either way ``frame_lengths_B`` counts the true frames, 50 a second.

    Args:
        net: transformers' ``WhisperEncoder``, for its weights.
        window, tail_s, train_tail_s: see `WhisperBackbone`.
    """

    max_s: Seconds | None = WINDOW_S

    def __init__(
        self,
        *,
        net: Any,
        window: Window,
        tail_s: Seconds,
        train_tail_s: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.window: Window = window
        self.tail_s = tail_s
        self.train_tail_s = None if train_tail_s is None else (train_tail_s[0], train_tail_s[1])
        self.dim: int = self.net.config.d_model
        self.net.embed_positions.requires_grad_(False)
        self.log_mel = LogMel(n_mels=self.net.config.num_mel_bins)
        self.cut_to: int | None = None
        self.gradient_checkpointing = False
        self.augment: SpecAugment | None = None
        self.masked_share: float | None = None
        self.layerdrop = 0.0

    def drop_layers(self, probability: float) -> None:
        """Leave out each layer with this probability in training steps."""
        self.layerdrop = probability

    def mask_with(self, augment: SpecAugment) -> None:
        """Hide spans of log-mel frames and bands whenever in train mode."""
        self.augment = augment

    def _hide(self, mel_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Zeros, near the mean of normalised log-mel, over the hidden spans of the speech."""
        assert self.augment is not None
        mel_lengths_B = lengths_B.div(HOP, rounding_mode="floor").clamp(max=mel_BMF.shape[-1])
        time_BF = self.augment.time_mask(mel_lengths_B, mel_BMF.shape[-1])
        band_BM = self.augment.feature_mask(*mel_BMF.shape[:2])
        self.masked_share = share(time_BF, mel_lengths_B)
        if time_BF is not None:
            mel_BMF = mel_BMF.masked_fill(time_BF.to(mel_BMF.device, non_blocking=True)[:, None], 0.0)
        if band_BM is not None:
            mel_BMF = mel_BMF.masked_fill(band_BM.to(mel_BMF.device, non_blocking=True)[..., None], 0.0)
        return mel_BMF

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames of so many samples: one for every 320 begun, at most 1,500."""
        return lengths_B.add(SAMPLES_PER_FRAME - 1).div(SAMPLES_PER_FRAME, rounding_mode="floor").clamp(max=1500)

    def _context_samples(self, lengths_B: Tensor) -> Tensor:
        if self.window == "30s":
            return torch.full_like(lengths_B, WINDOW_SAMPLES)
        tail_s = self.tail_s
        if self.training and self.train_tail_s is not None:
            low, high = self.train_tail_s
            # One draw for all: with one each, every row would be padded to the longest tail of the batch.
            tail_s = low + (high - low) * float(torch.rand(()))
        return (lengths_B + int(tail_s * SAMPLE_RATE)).clamp(max=WINDOW_SAMPLES)

    @property
    def n_layers(self) -> int:
        """Transformer layers of the checkpoint, also once it is cut."""
        layers: int = self.net.config.encoder_layers
        return layers

    def cut(self, layers: int) -> None:
        """Keep so many layers; the final norm belongs to the whole encoder's last and goes with it."""
        if layers < self.n_layers:
            self.cut_to = layers
            self.net.layers = self.net.layers[:layers]
            self.net.layer_norm = nn.Identity()

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """Encode ``waveform_BT`` (float32, 16 kHz, zero-padded) of ``lengths_B`` samples (int64, CPU)."""
        samples_B = self._context_samples(lengths_B)
        mel_lengths_B = (samples_B + HOP - 1).div(HOP, rounding_mode="floor")
        context_lengths_B = (mel_lengths_B + 1).div(2, rounding_mode="floor")
        mel_BMF = self.log_mel(waveform_BT, int(mel_lengths_B.max()))
        if self.training and self.augment is not None:
            mel_BMF = self._hide(mel_BMF, lengths_B)
        mel_mask = padding_mask(mel_lengths_B, mel_BMF.shape[-1], mel_BMF.device)
        # A convolution pads with zeros, so what lies beyond an utterance must be zero before each of them.
        x = functional.gelu(self.net.conv1(_blank(mel_BMF, mel_mask)))
        x = functional.gelu(self.net.conv2(_blank(x, mel_mask)))
        h_BFD = x.transpose(1, 2)
        h_BFD = h_BFD + self.net.embed_positions.weight[: h_BFD.shape[1]]
        h_BFD = drop(self.net, h_BFD)
        mask_BF = padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device)
        mask = None if mask_BF is None else mask_BF[:, None, None]
        # Kept only where asked for: a deep encoder's states are gigabytes.
        seen = [h_BFD] if layers else []
        for layer in self.net.layers:
            if self.training and self.layerdrop > 0 and float(torch.rand(())) < self.layerdrop:
                # Its weights get gradients of zero: all ranks agree on what has any.
                h_BFD = h_BFD + no_gradient(layer.parameters())
            else:
                again = self.gradient_checkpointing and self.training
                h_BFD = run_layer(self._layer, layer, h_BFD, mask, again=again)
            if layers:
                seen.append(h_BFD)
        h_BFD = self.net.layer_norm(h_BFD)
        kept = (*seen[:-1], h_BFD) if layers else None
        return EncoderOutput(h_BFD, self.frame_lengths(lengths_B), context_lengths_B, kept)

    @staticmethod
    def _layer(layer: Any, h_BFD: Tensor, mask: Tensor | None) -> Tensor:
        x_BFD = layer.self_attn_layer_norm(h_BFD)
        k, v = keys_values(layer.self_attn, x_BFD)
        h_BFD = h_BFD + drop(layer, attend(layer.self_attn, x_BFD, k, v, mask, causal=False))
        return feed_forward(layer, h_BFD)

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``feature_encoder`` (the two convolutions), ``layers.0`` … and ``final_norm``.

        The positions are sinusoids, not weights, and stay fixed as in pretraining.
        """
        return [
            LayerGroup("feature_encoder", (self.net.conv1, self.net.conv2)),
            *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(self.net.layers)),
            *([LayerGroup("final_norm", (self.net.layer_norm,))] if self.cut_to is None else []),
        ]

    def description(self) -> dict[str, Any]:
        """Plain data for `ssl_asr.models.loading.rebuild`."""
        return {
            "family": "whisper",
            "config": self.net.config.to_dict(),
            "window": self.window,
            "tail_s": self.tail_s,
            "train_tail_s": None if self.train_tail_s is None else list(self.train_tail_s),
            "cut_to": self.cut_to,
        }


def _blank(x_BMF: Tensor, mask_BF: Tensor | None) -> Tensor:
    return x_BMF if mask_BF is None else x_BMF * mask_BF[:, None]


class WhisperSeq2Seq(TransformerDecoder):
    """Whisper whole: encoder, decoder and the token head, which is the embedding itself.

    Args:
        encoder: the encoder at its window.
        net: transformers' ``WhisperDecoder``, for its weights.
        generation: the checkpoint's generation settings: ``suppress_tokens``, ``begin_suppress_tokens`` and
            whatever else it holds, kept whole.
    """

    def __init__(self, *, encoder: WhisperEncoder, net: Any, generation: dict[str, Any]) -> None:
        super().__init__(net=net)
        self.encoder = encoder
        self.generation = generation
        self.gradient_checkpointing = encoder.gradient_checkpointing

    def decoder_groups(self) -> Sequence[LayerGroup]:
        """``decoder.embed``, ``decoder.layers.0`` … and ``decoder.final_norm``."""
        return [
            LayerGroup("decoder.embed", (self.net.embed_tokens, self.net.embed_positions)),
            *(LayerGroup(f"decoder.layers.{i}", (layer,)) for i, layer in enumerate(self.net.layers)),
            LayerGroup("decoder.final_norm", (self.net.layer_norm,)),
        ]

    def description(self) -> dict[str, Any]:
        """Plain data for `ssl_asr.models.loading.rebuild`."""
        return {**self.encoder.description(), "generation": self.generation}


def new_whisper_parts(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Transformers' encoder and decoder of that configuration, with random weights."""
    from transformers import WhisperConfig, WhisperModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = WhisperModel(WhisperConfig(**settings)).to(torch.float32)
    return model.encoder, model.decoder
