"""Spectrograms in operators that can be traced for ONNX. See `SpeechEncoder.traceable`.

ONNX's Fourier transform does not run in all runtimes. A transform of frames of fixed size is linear, so it is a
convolution::

    waveform (N, T) -> convolution with cos and -sin, times the window -> real, imaginary (N, F, frames) -> power
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.spectrograms import PowerSpectrum
from ssl_asr.models.w2v_bert import FRAME, HOP, N_FFT, FramePower
from ssl_asr.models.whisper import HOP as WHISPER_HOP
from ssl_asr.models.whisper import LogMel
from ssl_asr.types import Samples


class _Power(nn.Module):
    """Squares of a convolution with a basis, ``power_BFT``.

    Args:
        basis_TF: complex128, shape (samples of a frame, frequencies).
        hop: int, samples from frame to frame.
    """

    basis_F1T: Tensor

    def __init__(self, basis_TF: Tensor, hop: Samples) -> None:
        super().__init__()
        parts_TF = torch.cat([basis_TF.real, basis_TF.imag], dim=1)
        self.register_buffer("basis_F1T", parts_TF.T[:, None].to(torch.float32).contiguous(), persistent=False)
        self._hop, self._bins = hop, basis_TF.shape[1]

    def forward(self, waveform_BT: Tensor) -> Tensor:
        squares_BFT = functional.conv1d(waveform_BT[:, None], self.basis_F1T, stride=self._hop).square()
        return squares_BFT[:, : self._bins] + squares_BFT[:, self._bins :]


class TraceablePower(nn.Module):
    """`PowerSpectrum` by a convolution."""

    def __init__(self, power: PowerSpectrum) -> None:
        super().__init__()
        self._half, self._padding = power.n_fft // 2, power.padding
        missing = power.n_fft - len(power.window_T)
        window_T = functional.pad(power.window_T.double(), (missing // 2, missing - missing // 2))
        self._power = _Power(torch.fft.rfft(torch.diag(window_T), power.n_fft), power.hop)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """See `PowerSpectrum`."""
        padded_B1T = functional.pad(waveform_BT[:, None], (self._half, self._half), mode=self._padding)
        power_BFT: Tensor = self._power(padded_B1T[:, 0])
        return power_BFT


class TraceableFramePower(nn.Module):
    """`FramePower` by a convolution: the mean, the preemphasis and the window are linear too."""

    def __init__(self, power: FramePower) -> None:
        super().__init__()
        frames_TT = copy.deepcopy(power).double().shaped(torch.eye(FRAME, dtype=torch.float64))
        self._power = _Power(torch.fft.rfft(frames_TT, N_FFT), HOP)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """See `FramePower`."""
        power_BTF: Tensor = self._power(waveform_BT).transpose(1, 2)
        return power_BTF


class TraceableLogMel(LogMel):
    """Whisper's log-mel, of as many frames as the input needs.

    A waveform longer than 30 s gives more frames than the encoder has positions, which the runtime refuses.
    """

    def __init__(self, log_mel: LogMel, room: Samples) -> None:
        nn.Module.__init__(self)
        self.register_buffer("filters_FM", log_mel.filters_FM, persistent=False)
        self.power, self._room = TraceablePower(cast(PowerSpectrum, log_mel.power)), room

    def of_lengths(self, waveform_BT: Tensor, frames_B: Tensor) -> Tensor:
        """See `LogMel`."""
        silence_BT = torch.zeros_like(waveform_BT[:, :1]).expand(-1, self._room)
        mel_BMF = self._log_mel(self.power(torch.cat([waveform_BT, silence_BT], dim=1)))
        given = torch.ones_like(waveform_BT[0, ::WHISPER_HOP], dtype=torch.int64).sum()
        return mel_BMF[..., : torch.maximum(frames_B.max(), given)]
