"""Noise and rooms: changes that need recordings."""

import math
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Len, Predicate
from torch import Tensor

from ssl_asr.data.audio import check_header, read_waveform
from ssl_asr.data.files import OF_SHARD, Location
from ssl_asr.data.manifest import Manifest, read_manifest
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserError, raise_all
from ssl_asr.types import (
    SAMPLE_RATE,
    Expected,
    Fraction,
    ManifestPath,
    Seconds,
    Utterance,
    is_rising,
)

Range = Annotated[list[float], Len(2, 2), Predicate(is_rising), Expected("two numbers, the lower one first")]
"""Lowest and highest value of what is drawn."""


def between(bounds: list[float], rng: np.random.Generator) -> float:
    """A number that is drawn uniformly between two bounds."""
    low, high = bounds
    return float(rng.uniform(low, high))


# The variable that the option files take the folder of corpora from, and the folder without it.
_ROOT, _NO_ROOT = "SSL_ASR_DATA", "../shared/data/"
# Longer recordings are read in part.
_SHORT_S: Seconds = 60.0


@lru_cache(maxsize=256)
def _samples(path: str, offset: Seconds, duration: Seconds, channel: int | None) -> Tensor:
    """Samples of a recording, kept in memory."""
    return read_waveform(
        Utterance(id=path, audio_filepath=path, duration=duration, offset=offset, channel=channel), downmix="first"
    )


def _recordings(path: str, source: str) -> Manifest:
    """A manifest whose audio files can be opened.

    Args:
        path: The manifest.
        source: Where users find such recordings.

    Raises:
        ConfigError: The manifest cannot be read.
        ManifestError, AudioError, UserErrors: Lines are wrong, or files cannot be read.
    """
    try:
        manifest = read_manifest(path, require_text=False, unique_ids=False)
    except ManifestError as error:
        if error.where != path:
            raise
        remedy = f"give the path of a manifest. {source} has free recordings, and `ssl-asr prepare FOLDER"
        what = f"{path}{_origin(path)}: {error.what}"
        raise ConfigError("manifest", what, f"{remedy} require_text=false` makes a manifest") from None
    errors: list[UserError] = []
    shards: set[str] = set()
    for recording in manifest:
        location = Location.of(recording.audio_filepath)
        # A shard that cannot be read is named once.
        if location.container in shards:
            continue
        try:
            check_header(recording)
        except AudioError as error:
            errors.append(error)
            if location.member is not None and error.reason in OF_SHARD:
                shards.add(location.container)
    raise_all(errors)
    return manifest


def _origin(path: str) -> str:
    """Says that a path comes from the variable that names the folder of corpora, as that of the option files does."""
    root = os.environ.get(_ROOT)
    if root is None:
        return f" ({_ROOT} is not set)" if path.startswith(_NO_ROOT) else ""
    return f" (from {_ROOT}={root})" if Path(path).is_relative_to(root) else ""


def _whole(utterance: Utterance) -> Tensor:
    return _samples(utterance.audio_filepath, utterance.offset, utterance.duration, utterance.channel)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Adds a recording of noise. The ``noise`` option.

    Attributes:
        manifest: Manifest of the recordings; they need no text.
        snr_db: Lowest and highest signal-to-noise ratio in dB, drawn uniformly.
        probability: Fraction of utterances that are changed in an epoch.
    """

    manifest: ManifestPath
    snr_db: Range
    probability: Fraction

    def build(self) -> "NoiseAdder":
        """See `NoiseAdder`.

        Raises:
            UserError: The manifest cannot be read, or is wrong.
        """
        return NoiseAdder(_recordings(self.manifest, "MUSAN (https://www.openslr.org/17)"), self.snr_db)


class NoiseAdder:
    """Adds a random part of a random recording. Short recordings are repeated.

    The ratio is that of the mean powers of the whole utterance and of the noise that is added to it. Utterances and
    noise without any sound are not changed.

    Args:
        recordings: The noise.
        snr_db: Lowest and highest signal-to-noise ratio in dB.
    """

    def __init__(self, recordings: Manifest, snr_db: list[float]) -> None:
        self._recordings, self._snr_db = recordings, snr_db

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `Change`."""
        recording = self._recordings[int(rng.integers(len(self._recordings)))]
        noise_T = self._part(recording, len(waveform_T), rng)
        snr_db = between(self._snr_db, rng)
        speech, noise = float(waveform_T.square().mean()), float(noise_T.square().mean())
        if speech == 0 or noise == 0:
            return waveform_T
        return waveform_T + noise_T * math.sqrt(speech / noise * 10 ** (-snr_db / 10))

    @staticmethod
    def _part(recording: Utterance, samples: int, rng: np.random.Generator) -> Tensor:
        start = rng.random()
        if recording.duration > _SHORT_S and recording.duration > samples / SAMPLE_RATE:
            wanted = samples / SAMPLE_RATE
            offset = recording.offset + start * (recording.duration - wanted)
            noise_T = read_waveform(replace(recording, offset=offset, duration=wanted), downmix="first")
            start = 0.0
        else:
            noise_T = _whole(recording)
        noise_T = noise_T.roll(-int(start * len(noise_T)))
        return noise_T.repeat(-(-samples // len(noise_T)))[:samples]


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Puts speech into rooms, by their impulse responses. The ``rooms`` option.

    Attributes:
        manifest: Manifest of the impulse responses; they need no text.
        probability: Fraction of utterances that are changed in an epoch.
    """

    manifest: ManifestPath
    probability: Fraction

    def build(self) -> "RoomAdder":
        """See `RoomAdder`.

        Raises:
            UserError: The manifest cannot be read, or is wrong.
        """
        return RoomAdder(_recordings(self.manifest, "OpenSLR 28 (https://www.openslr.org/28)"))


class RoomAdder:
    """Convolves speech with a random impulse response.

    The direct sound, the largest sample of the response, stays where it was, so that times of words are kept. The power
    of the utterance stays as it was.

    Args:
        responses: The impulse responses.
    """

    def __init__(self, responses: Manifest) -> None:
        self._responses = responses

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """See `Change`."""
        response_T = _whole(self._responses[int(rng.integers(len(self._responses)))])
        direct = int(response_T.abs().argmax())
        size = len(waveform_T) + len(response_T) - 1
        spectrum_F = torch.fft.rfft(waveform_T, size) * torch.fft.rfft(response_T, size)
        there_T = torch.fft.irfft(spectrum_F, size)[direct : direct + len(waveform_T)]
        power = float(there_T.square().mean())
        return waveform_T if power == 0 else there_T * math.sqrt(float(waveform_T.square().mean()) / power)
