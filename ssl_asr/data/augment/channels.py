"""Level, bandwidth, codecs and drops: changes that need no recordings."""

import io
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import soundfile
import torch
from annotated_types import Interval, Len, MinLen, Predicate
from torch import Tensor

from ssl_asr.data.audio import resample
from ssl_asr.data.augment.sounds import Range, between
from ssl_asr.types import SAMPLE_RATE, Expected, Fraction, Hertz, is_rising

_HALF_RATE = SAMPLE_RATE / 2
Frequencies = Annotated[
    list[Annotated[float, Interval(ge=0, le=_HALF_RATE)]],
    Len(2, 2),
    Predicate(is_rising),
    Expected(f"two numbers from 0 to {_HALF_RATE:g} Hz, the lower one first"),
]
Counts = Annotated[
    list[Annotated[int, Interval(ge=0, le=1000)]],
    Len(2, 2),
    Predicate(is_rising),
    Expected("two numbers from 0, the lower one first"),
]
Lengths = Annotated[
    list[Annotated[float, Interval(ge=0, le=60)]],
    Len(2, 2),
    Predicate(is_rising),
    Expected("two numbers of seconds, the lower one first"),
]
CodecName = Literal["mulaw", "alaw", "gsm", "opus", "vorbis", "mp3"]
# Edges of bands fall off over this range.
_EDGE_HZ = 100.0
# Rate, and soundfile's names of the file format and of the codec.
_CODECS: dict[str, tuple[Hertz, str, str]] = {
    "mulaw": (8_000, "WAV", "ULAW"),
    "alaw": (8_000, "WAV", "ALAW"),
    "gsm": (8_000, "WAV", "GSM610"),
    "opus": (16_000, "OGG", "OPUS"),
    "vorbis": (16_000, "OGG", "VORBIS"),
    "mp3": (16_000, "MP3", "MPEG_LAYER_III"),
}


@dataclass(frozen=True, kw_only=True)
class _OwnChange:
    """An option that is the change itself."""

    probability: Fraction

    def build(self) -> Self:
        """The option is the change."""
        return self


@dataclass(frozen=True, kw_only=True)
class Volume(_OwnChange):
    """Changes the level. The ``volume`` option.

    Attributes:
        gain_db: Lowest and highest gain in dB, drawn uniformly.
        probability: Fraction of utterances that are changed in an epoch.
    """

    gain_db: Range

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `ssl_asr.data.augment.Change`."""
        factor: float = 10 ** (between(self.gain_db, rng) / 20)
        return waveform_T * factor


@dataclass(frozen=True, kw_only=True)
class BandLimit(_OwnChange):
    """Keeps a band of frequencies, as telephones and old microphones do. The ``band_limit`` option.

    Attributes:
        low_hz: Lowest and highest lower edge in Hz, drawn uniformly.
        high_hz: Lowest and highest upper edge in Hz.
        probability: Fraction of utterances that are changed in an epoch.
    """

    low_hz: Frequencies
    high_hz: Frequencies

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `ssl_asr.data.augment.Change`."""
        low, high = between(self.low_hz, rng), between(self.high_hz, rng)
        spectrum_F, hz_F = _spectrum(waveform_T)
        gain_F = ((hz_F - low) / _EDGE_HZ + 0.5).clamp(0, 1) * ((high - hz_F) / _EDGE_HZ + 0.5).clamp(0, 1)
        return _waveform(spectrum_F * gain_F, len(waveform_T))


def _spectrum(waveform_T: Tensor) -> tuple[Tensor, Tensor]:
    """Spectrum of a waveform, padded to twice its length, and the frequency of each bin."""
    spectrum_F = torch.fft.rfft(waveform_T, 2 * len(waveform_T))
    return spectrum_F, torch.linspace(0, _HALF_RATE, len(spectrum_F))


def _waveform(spectrum_F: Tensor, samples: int) -> Tensor:
    """The waveform of a spectrum of `_spectrum`."""
    padded_T: Tensor = torch.fft.irfft(spectrum_F, 2 * samples)
    return padded_T[:samples]


@dataclass(frozen=True, kw_only=True)
class Codec(_OwnChange):
    """Encodes and decodes the audio. The ``codec`` option.

    Attributes:
        codecs: Codecs with equal probability. ``mulaw``, ``alaw`` and ``gsm`` have the 8 kHz of telephones.
        compression: Lowest and highest compression of ``opus``, ``vorbis`` and ``mp3``, from 0 to 1, drawn uniformly.
        probability: Fraction of utterances that are changed in an epoch.
    """

    codecs: Annotated[list[CodecName], MinLen(1)]
    compression: Annotated[
        list[Fraction], Len(2, 2), Predicate(is_rising), Expected("two numbers from 0 to 1, the lower one first")
    ]

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `ssl_asr.data.augment.Change`."""
        name = self.codecs[int(rng.integers(len(self.codecs)))]
        return coded(waveform_T, name, between(self.compression, rng))


def coded(waveform_T: Tensor, codec: CodecName, compression: float) -> Tensor:
    """A waveform after a codec, of the same length and without delay.

    Args:
        waveform_T: float32, 16 kHz.
        codec: Name of the codec.
        compression: From 0, the best quality, to 1. Telephone codecs have one quality.
    """
    from torchaudio.functional import resample as resample_to

    rate, container, subtype = _CODECS[codec]
    narrow_T = resample_to(waveform_T, SAMPLE_RATE, rate).clamp(-1, 1)
    file, variable = io.BytesIO(), rate == SAMPLE_RATE
    # The MP3 encoder of libsndfile does not take 1.
    options = {"compression_level": min(compression, 0.99)} if variable else {}
    soundfile.write(file, narrow_T.numpy(), rate, format=container, subtype=subtype, **options)
    file.seek(0)
    samples, _ = soundfile.read(file, dtype="float32")
    decoded_T = resample(torch.from_numpy(samples), rate)
    missing = max(0, len(waveform_T) - len(decoded_T))
    return torch.nn.functional.pad(decoded_T, (0, missing))[: len(waveform_T)]


@dataclass(frozen=True, kw_only=True)
class TimeDrop(_OwnChange):
    """Silences short parts. The ``time_drop`` option.

    Attributes:
        count: Lowest and highest number of parts.
        length_s: Lowest and highest length of a part in seconds.
        probability: Fraction of utterances that are changed in an epoch.
    """

    count: Counts
    length_s: Lengths

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `ssl_asr.data.augment.Change`."""
        changed_T = waveform_T.clone()
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            length = round(between(self.length_s, rng) * SAMPLE_RATE)
            start = int(rng.integers(max(1, len(waveform_T) - length + 1)))
            changed_T[start : start + length] = 0
        return changed_T


@dataclass(frozen=True, kw_only=True)
class FrequencyDrop(_OwnChange):
    """Removes narrow bands of frequencies. The ``frequency_drop`` option.

    Attributes:
        count: Lowest and highest number of bands.
        width_hz: Width of a band in Hz.
        probability: Fraction of utterances that are changed in an epoch.
    """

    count: Counts
    width_hz: Annotated[float, Interval(gt=0, le=_HALF_RATE)]

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `ssl_asr.data.augment.Change`."""
        spectrum_F, hz_F = _spectrum(waveform_T)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            middle = rng.uniform(0, _HALF_RATE)
            outside_F = ((hz_F - middle).abs() - self.width_hz / 2) / _EDGE_HZ
            spectrum_F = spectrum_F * outside_F.clamp(0, 1)
        return _waveform(spectrum_F, len(waveform_T))
