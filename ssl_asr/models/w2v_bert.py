"""w2v-BERT 2.0: Kaldi filter banks computed on the device, pairs of frames joined into one, and a conformer.

The weights come from transformers, the forward passes are our own: the filter banks, which are batched and do not
depend on padding, and the layers (`ssl_asr.models.conformer`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ssl_asr.models.conformer import conformer_layer, positions_of
from ssl_asr.models.encoder import LayerGroup, run_layers
from ssl_asr.models.loading import new_net
from ssl_asr.models.ragged import frames_of
from ssl_asr.models.spectrograms import center_bands
from ssl_asr.models.ssl import SSLBackbone, SSLEncoder
from ssl_asr.models.transformer import run_layer
from ssl_asr.types import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from transformers.feature_extraction_utils import FeatureExtractionMixin

FRAME: Samples = 400
HOP: Samples = 160
N_FFT: Samples = 512
BANDS = 80
# Number of 10 ms frames in one 20 ms frame.
JOINED = 2
_PREEMPHASIS = 0.97
_FLOOR = 1.192092955078125e-07
_VARIANCE_FLOOR = 1e-7


class FramePower(nn.Module):
    """Power of the frequencies in frames of 25 ms, each without its mean and with preemphasis, as Kaldi computes it."""

    window_T: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import window_function

        window = window_function(FRAME, "povey", periodic=False)
        self.register_buffer("window_T", torch.from_numpy(window).to(torch.float32), persistent=False)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Computes ``power_BTF``, float32, with ``1 + N_FFT // 2`` frequencies for each 10 ms.

        Args:
            waveform_BT: float32, shape (batch, samples), 16 kHz.
        """
        frames_BTF: Tensor = waveform_BT.unfold(1, FRAME, HOP)
        power_BTF: Tensor = torch.fft.rfft(self.shaped(frames_BTF), N_FFT).abs().square()
        return power_BTF

    def shaped(self, frames: Tensor) -> Tensor:
        """Frames of shape (…, FRAME) as the Fourier transform takes them. Linear in the frame."""
        frames = frames * 2**15
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        return (frames - _PREEMPHASIS * before) * self.window_T


class FilterBanks(nn.Module):
    """Kaldi log filter banks, normalized per band over the frames of each utterance, pairs of frames concatenated.

    The result for each utterance equals that of transformers' ``SeamlessM4TFeatureExtractor`` for it alone.
    """

    filters_FM: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=BANDS,
            min_frequency=20.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self.register_buffer("filters_FM", torch.from_numpy(filters).to(torch.float32), persistent=False)
        self.power: nn.Module = FramePower()

    @staticmethod
    def frame_lengths(lengths_B: Tensor) -> Tensor:
        """Number of 20 ms frames for each number of samples. An odd 10 ms frame at the end is dropped."""
        frames_B = (lengths_B - FRAME).div(HOP, rounding_mode="floor") + 1
        return frames_B.div(JOINED, rounding_mode="floor").clamp(min=0)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Filter banks ``features_BFM``, float32, 160 values per frame. Padding is zero.

        Args:
            waveform_BT: float, shape (batch, samples), 16 kHz, zero-padded.
            lengths_B: int64 on the CPU, shape (batch,), number of samples.
        """
        with torch.autocast(waveform_BT.device.type, enabled=False):
            log_BFM = self._log_banks(waveform_BT.float())
        frames_B = ((lengths_B - FRAME).div(HOP, rounding_mode="floor") + 1).clamp(min=0)
        centered_BFM, variance_B1M = center_bands(log_BFM, frames_B)
        normed_BFM = centered_BFM / (variance_B1M + _VARIANCE_FLOOR).sqrt()
        joined = normed_BFM.shape[1] // JOINED
        return normed_BFM[:, : joined * JOINED].reshape(-1, joined, BANDS * JOINED)

    def _log_banks(self, waveform_BT: Tensor) -> Tensor:
        log_BFM: Tensor = (self.power(waveform_BT) @ self.filters_FM).clamp(min=_FLOOR).log()
        return log_BFM


class W2vBertEncoder(SSLEncoder):
    """The conformer of w2v-BERT 2.0.

    Args:
        net: ``Wav2Vec2BertModel`` of transformers.
    """

    lora_targets = ("linear_q", "linear_v")

    def __init__(self, *, net: nn.Module) -> None:
        super().__init__(net=net, normalize=False)
        self.filter_banks = FilterBanks()
        self._layer = conformer_layer

    def _front(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        features_BFM = self.filter_banks(waveform_BT, lengths_B)
        h_BFD, _ = self.net.feature_projection(self.as_weights(features_BFM))
        return h_BFD, self.frame_lengths(lengths_B)

    def _states(self, h_BFD: Tensor, frame_lengths_B: Tensor, *, keep: bool) -> list[Tensor]:
        encoder, frames = self.net.encoder, frames_of(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
        positions = positions_of(encoder, h_BFD, frames)

        def run(layer: nn.Module, x: Tensor) -> Tensor:
            states: Tensor = run_layer(self._layer, layer, x, frames, positions, recompute=self._recomputes)
            return states

        layerdrop = self.layerdrop if self.training else 0.0
        x = encoder.dropout(frames.enter(h_BFD))
        return [frames.leave(state) for state in run_layers(encoder.layers, x, run, layerdrop=layerdrop, keep=keep)]

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of 20 ms frames for each number of samples."""
        return self.filter_banks.frame_lengths(lengths_B)

    @property
    def min_samples(self) -> Samples:
        """Shortest input that gives a frame: 560 samples, 35 ms."""
        return FRAME + (JOINED - 1) * HOP

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``projection`` and ``layers.N``."""
        return [
            LayerGroup("projection", (self.net.feature_projection,), self._mask_vector()),
            *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(self.net.encoder.layers)),
        ]

    def traceable(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        """See `SpeechEncoder`."""
        from ssl_asr.models.traceable import TraceableFramePower

        yield self.filter_banks, "power", TraceableFramePower(cast(FramePower, self.filter_banks.power))

    def feature_extractor(self) -> "FeatureExtractionMixin":
        """See `SpeechEncoder`."""
        from transformers import SeamlessM4TFeatureExtractor

        return SeamlessM4TFeatureExtractor()

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """See `SpeechEncoder`."""
        encoder = cls(net=new_net(description["config"]))
        if description["cut_to"] is not None:
            encoder.cut(description["cut_to"])
        return encoder


@dataclass(frozen=True, kw_only=True)
class W2vBertBackbone(SSLBackbone):
    """A w2v-BERT 2.0 checkpoint. The model reads filter banks, so ``normalize_waveform`` has no effect.

    Attributes: See `SSLBackbone`.
    """

    model_types: ClassVar[tuple[str, ...]] = ("wav2vec2-bert",)

    def _wrap(self, net: nn.Module, folder: Path) -> W2vBertEncoder:
        return W2vBertEncoder(net=net)
