"""Read audio files as float32 mono waveforms at 16 kHz.

soundfile reads WAV, FLAC, OGG (Vorbis and Opus) and MP3; torchaudio resamples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_asr.errors import AudioError
from ssl_asr.types import SAMPLE_RATE, Hertz, Seconds, Utterance

Downmix = Literal["mean", "first", "refuse"]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
# A header may round the length; more missing than this means the file was cut off.
DURATION_TOLERANCE_S: Seconds = 0.1


@contextmanager
def _open(utterance: Utterance) -> Iterator[soundfile.SoundFile]:
    """The open file, its faults told apart: libsndfile itself says 'System error' to most."""
    path, where = Path(utterance.audio_filepath), f"{utterance.id} ({utterance.where or 'no manifest'})"
    if not path.is_file():
        raise AudioError(where, f"no such file: {path}", "check audio_filepath", "missing_file")
    if path.stat().st_size == 0:
        raise AudioError(where, f"empty file (0 bytes): {path}", "fetch it again", "empty_file")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        remedy = f"readable are {', '.join(AUDIO_SUFFIXES)}"
        raise AudioError(where, f"not audio: {path}: {error}", remedy, "not_audio") from None
    with file:
        if file.frames == 0:
            raise AudioError(where, f"no samples in {path}", "leave it out", "no_samples")
        yield file


def _missing_s(file: soundfile.SoundFile, utterance: Utterance) -> Seconds:
    missing: Seconds = utterance.offset + utterance.duration - file.frames / file.samplerate
    return missing


def _cut_off(utterance: Utterance, missing_s: Seconds) -> AudioError:
    return AudioError(
        f"{utterance.id} ({utterance.where or 'no manifest'})",
        f"{utterance.audio_filepath} ends {missing_s:.2f} s before the manifest says",
        "the file is cut off, or duration/offset are wrong",
        "duration_mismatch",
    )


def check_header(utterance: Utterance) -> None:
    """Raise `AudioError` where the header alone shows that the audio cannot be what the manifest says."""
    with _open(utterance) as file:
        if _missing_s(file, utterance) > DURATION_TOLERANCE_S:
            raise _cut_off(utterance, _missing_s(file, utterance))


def audio_duration_s(path: Path) -> Seconds:
    """Seconds of audio in a file, from its header.

    Raises:
        AudioError: the file is missing, empty or not audio.
    """
    with _open(Utterance(id=path.name, audio_filepath=str(path), duration=0.0)) as file:
        seconds: float = file.frames / file.samplerate
        return seconds


def read_waveform(utterance: Utterance, *, downmix: Downmix = "mean", speed: float = 1.0) -> Tensor:
    """The utterance's samples, ``waveform_T`` float32 mono at 16 kHz.

    Args:
        utterance: what to read; ``channel`` picks one channel, whatever ``downmix`` says.
        downmix: several channels become their ``mean``, the ``first``, or an error (``refuse``).
        speed: above 1 it is faster, shorter and higher, as if recorded at a rate so many times as high.

    Raises:
        AudioError: the file is missing, empty, not audio, cut off, silent of samples or not finite, or has
            channels that ``downmix`` refuses.
    """
    where = f"{utterance.id} ({utterance.where or 'no manifest'})"
    with _open(utterance) as file:
        rate = file.samplerate
        try:
            file.seek(round(utterance.offset * rate))
            wanted = round(utterance.duration * rate) if utterance.duration > 0 else -1
            samples_TC = file.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            what = f"cannot decode {utterance.audio_filepath}: {error}"
            raise AudioError(where, what, "the file is damaged: fetch it again", "decode_error") from None
    missing_s = utterance.duration - len(samples_TC) / rate
    if missing_s > DURATION_TOLERANCE_S:
        raise _cut_off(utterance, missing_s)
    if len(samples_TC) == 0:
        raise AudioError(where, f"no samples in {utterance.audio_filepath}", "leave it out", "no_samples")
    samples_T = _mono(samples_TC, utterance, downmix, where)
    if not np.isfinite(samples_T).all():
        what = f"NaN or infinite samples in {utterance.audio_filepath}"
        raise AudioError(where, what, "make the file again", "non_finite")
    waveform_T = resample(torch.from_numpy(np.ascontiguousarray(samples_T)), rate)
    # In two steps: the ratio of 44.1 kHz times a factor to 16 kHz would need filters of a hundred megabytes.
    return resample(waveform_T, round(speed * SAMPLE_RATE))


def _mono(samples_TC: NDArray[np.float32], utterance: Utterance, downmix: Downmix, where: str) -> NDArray[np.float32]:
    channels = samples_TC.shape[1]
    if utterance.channel is not None:
        if utterance.channel >= channels:
            what = f"channel {utterance.channel} of {channels} in {utterance.audio_filepath}"
            raise AudioError(where, what, "channels count from 0", "no_such_channel")
        return samples_TC[:, utterance.channel]
    if channels == 1 or downmix == "first":
        return samples_TC[:, 0]
    if downmix == "refuse":
        what = f"{channels} channels in {utterance.audio_filepath}"
        raise AudioError(where, what, "set data.downmix=mean, or 'channel' in the manifest", "many_channels")
    mean: NDArray[np.float32] = samples_TC.mean(axis=1)
    return mean


@lru_cache(maxsize=32)
def _resampler(rate: Hertz) -> nn.Module:
    from torchaudio.transforms import Resample

    resampler: nn.Module = Resample(rate, SAMPLE_RATE)
    return resampler


def resample(waveform_T: Tensor, rate: Hertz) -> Tensor:
    """Samples at 16 kHz of those at another rate."""
    if rate == SAMPLE_RATE:
        return waveform_T
    with torch.inference_mode():
        resampled: Tensor = _resampler(rate)(waveform_T)
    return resampled.clone()
