"""Read audio files as float32 mono waveforms at 16 kHz.

soundfile reads WAV, FLAC, OGG (Vorbis and Opus) and MP3. torchaudio resamples.
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
# Headers may round the duration. If more than this is missing, the file is truncated.
DURATION_TOLERANCE_S: Seconds = 0.1


@contextmanager
def _open(utterance: Utterance) -> Iterator[soundfile.SoundFile]:
    """The open file. Distinguishes errors for which libsndfile reports only 'System error'."""
    path, where = Path(utterance.audio_filepath), _where(utterance)
    if not path.is_file():
        raise AudioError(where, f"no such file: {path}", "check audio_filepath", "missing_file")
    if path.stat().st_size == 0:
        raise AudioError(where, f"empty file (0 bytes): {path}", "get the file again", "empty_file")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        remedy = f"use one of {', '.join(AUDIO_SUFFIXES)}"
        raise AudioError(where, f"not an audio file: {path}: {error}", remedy, "not_audio") from None
    with file:
        if file.frames == 0:
            raise AudioError(where, f"no samples in {path}", "remove it from the manifest", "no_samples")
        yield file


def _missing_s(file: soundfile.SoundFile, utterance: Utterance) -> Seconds:
    missing: Seconds = utterance.offset + utterance.duration - file.frames / file.samplerate
    return missing


def _truncated(utterance: Utterance, missing_s: Seconds) -> AudioError:
    what = f"{utterance.audio_filepath} ends {missing_s:.2f} s before the manifest says"
    remedy = "get the file again if it is truncated, or correct 'duration' and 'offset'"
    return AudioError(_where(utterance), what, remedy, "duration_mismatch")


def _where(utterance: Utterance) -> str:
    return f"{utterance.id} ({utterance.where or 'no manifest'})"


def check_header(utterance: Utterance) -> None:
    """Raise AudioError if the file cannot be opened, or if its header contradicts the manifest."""
    with _open(utterance) as file:
        if _missing_s(file, utterance) > DURATION_TOLERANCE_S:
            raise _truncated(utterance, _missing_s(file, utterance))


def audio_duration_s(path: Path) -> Seconds:
    """Duration of an audio file in seconds, from its header.

    Raises:
        AudioError: The file does not exist, is empty or is not audio.
    """
    with _open(Utterance(id=path.name, audio_filepath=str(path), duration=0.0)) as file:
        seconds: float = file.frames / file.samplerate
        return seconds


def read_waveform(utterance: Utterance, *, downmix: Downmix = "mean", speed: float = 1.0) -> Tensor:
    """Samples of an utterance, float32 mono at 16 kHz.

    Args:
        utterance: Its ``channel`` selects one channel and overrides ``downmix``.
        downmix: What several channels become: their ``mean``, the ``first`` channel, or an error (``refuse``).
        speed: Speed factor. Above 1, speech is faster, shorter and higher.

    Returns:
        ``waveform_T`` of shape (T,).

    Raises:
        AudioError: The file does not exist, is empty, truncated or not audio, has samples that are not finite, or
            has channels that ``downmix`` refuses.
    """
    where = _where(utterance)
    with _open(utterance) as file:
        rate = file.samplerate
        try:
            file.seek(round(utterance.offset * rate))
            wanted = round(utterance.duration * rate) if utterance.duration > 0 else -1
            samples_TC = file.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            what = f"cannot decode {utterance.audio_filepath}: {error}"
            raise AudioError(where, what, "the file is damaged, get it again", "decode_error") from None
    missing_s = utterance.duration - len(samples_TC) / rate
    if missing_s > DURATION_TOLERANCE_S:
        raise _truncated(utterance, missing_s)
    if len(samples_TC) == 0:
        raise AudioError(
            where, f"no samples in {utterance.audio_filepath}", "remove it from the manifest", "no_samples"
        )
    samples_T = _mono(samples_TC, utterance, downmix, where)
    if not np.isfinite(samples_T).all():
        what = f"NaN or infinite samples in {utterance.audio_filepath}"
        raise AudioError(where, what, "export the file again", "non_finite")
    waveform_T = resample(torch.from_numpy(np.ascontiguousarray(samples_T)), rate)
    # Two steps, because one step from 44.1 kHz times the factor to 16 kHz would need filters of 100 MB.
    return resample(waveform_T, round(speed * SAMPLE_RATE))


def _mono(samples_TC: NDArray[np.float32], utterance: Utterance, downmix: Downmix, where: str) -> NDArray[np.float32]:
    channels = samples_TC.shape[1]
    if utterance.channel is not None:
        if utterance.channel >= channels:
            what = f"channel {utterance.channel} of {channels} in {utterance.audio_filepath}"
            raise AudioError(where, what, "channels are numbered from 0", "no_such_channel")
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
    """Resample a waveform from ``rate`` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform_T
    with torch.inference_mode():
        resampled: Tensor = _resampler(rate)(waveform_T)
    return resampled.clone()
