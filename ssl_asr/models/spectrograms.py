"""Parts that the spectrograms of several encoder families share."""

import torch
from torch import Tensor, nn

from ssl_asr.models.encoder import padding_mask
from ssl_asr.types import SAMPLE_RATE, Samples, on_device


def slaney_filters(n_mels: int, *, n_fft: Samples) -> Tensor:
    """Mel filters ``filters_FM`` from 0 Hz to 8 kHz on Slaney's scale, with unit area. float32.

    Args:
        n_mels: Number of mel bands.
        n_fft: Size of the Fourier transform, which has ``1 + n_fft // 2`` frequency bins.
    """
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=1 + n_fft // 2,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).to(torch.float32)


class PowerSpectrum(nn.Module):
    """Power of the frequencies in centered frames of a waveform.

    Args:
        n_fft: int, size of the Fourier transform.
        hop: int, samples from frame to frame.
        window_T: float32, shape (samples,), at most ``n_fft`` samples.
        padding: str, what the first and the last frame see beyond the waveform: "reflect" or "constant" for zeros.
    """

    window_T: Tensor

    def __init__(self, *, n_fft: Samples, hop: Samples, window_T: Tensor, padding: str) -> None:
        super().__init__()
        self.n_fft, self.hop, self.padding = n_fft, hop, padding
        self.register_buffer("window_T", window_T, persistent=False)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Computes ``power_BFT``, float32, with ``1 + n_fft // 2`` frequencies and ``1 + samples // hop`` frames.

        Args:
            waveform_BT: float32, shape (batch, samples).
        """
        spectrum = torch.stft(
            waveform_BT,
            self.n_fft,
            self.hop,
            len(self.window_T),
            window=self.window_T,
            pad_mode=self.padding,
            return_complex=True,
        )
        return spectrum.abs().square()


def center_bands(features_BFM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean of each band over the frames of each utterance.

    Args:
        features_BFM: float, shape (batch, frames, bands).
        frames_B: int64 on the CPU, shape (batch,), number of frames of each utterance, at least 2.

    Returns:
        ``centered_BFM``, with zeros in the padding, and the unbiased variance ``variance_B1M``.
    """
    mask_BF = padding_mask(frames_B, features_BFM.shape[1], features_BFM.device)
    mask = 1.0 if mask_BF is None else mask_BF[..., None].to(features_BFM.dtype)
    count_B = on_device(frames_B, features_BFM.device)[:, None, None]
    mean_B1M = (features_BFM * mask).sum(1, keepdim=True) / count_B
    centered_BFM = (features_BFM - mean_B1M) * mask
    return centered_BFM, centered_BFM.square().sum(1, keepdim=True) / (count_B - 1)
