"""Read audio as float32 mono waveforms at 16 kHz.

`ssl_asr.data.media` opens files of all formats, `ssl_asr.data.signal` checks the samples. torchaudio resamples.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_asr.data.files import FileKey
from ssl_asr.data.media import AUDIO_SUFFIXES as AUDIO_SUFFIXES
from ssl_asr.data.media import Header, Source, ends_early, header_of, open_source, source_of
from ssl_asr.data.remote import MediaError
from ssl_asr.data.signal import Signal, integer_scale, measured, mix
from ssl_asr.errors import AudioError
from ssl_asr.types import SAMPLE_RATE, Downmix, Hertz, Samples, Seconds, Utterance

# Headers may round the duration. If more than this is missing, the file is truncated.
DURATION_TOLERANCE_S: Seconds = 0.1
# Size of the filters of one sample rate, in numbers. Above it, FFmpeg resamples, whose filters are interpolated: those
# of torchaudio for 44,101 Hz need gigabytes. Filters of all usual rates, 11,025 Hz included, are far smaller.
_MAX_FILTER = 1 << 20
# Samples that FFmpeg resamples at a time. It takes no more than 2 GiB at once.
_RESAMPLED_AT_A_TIME: Samples = 1 << 20
# A dimension of samples in memory up to this is the channels.
_MAX_CHANNELS = 32


@contextmanager
def _reported(utterance: Utterance) -> Iterator[None]:
    """Adds the utterance and its file to the errors of `ssl_asr.data.media`."""
    try:
        yield
    except MediaError as error:
        what, remedy = f"{utterance.audio_filepath}: {error.what}", error.remedy
        if not utterance.where:
            # The path is the place, and no key of a manifest names it.
            what, remedy = error.what, "check the path" if error.reason == "missing_file" else remedy
        raise AudioError(_where(utterance), what, remedy, error.reason) from None


def _where(utterance: Utterance) -> str:
    """The utterance and its line in the manifest. Without a manifest, its file."""
    return f"{utterance.id} ({utterance.where})" if utterance.where else utterance.audio_filepath


def _truncated(utterance: Utterance, missing_s: Seconds) -> AudioError:
    what = f"{utterance.audio_filepath} ends {missing_s:.2f} s before "
    what += "the manifest says" if utterance.where else "its header says"
    remedy = "get the file again if it is truncated"
    remedy += ", or correct 'duration' and 'offset'" if utterance.where else ""
    return AudioError(_where(utterance), what, remedy, "duration_mismatch")


def check_header(utterance: Utterance, *, downmix: Downmix = "mean", any_rate: bool = True) -> Header:
    """Raise AudioError if the file cannot be opened, is shorter than the manifest says, or would be refused when read.

    The length is that of the header where the header is exact, and otherwise that of the packets in the file.

    Args:
        utterance: The utterance.
        downmix, any_rate: See `read_waveform`.

    Returns:
        Length, sample rate and channels of the file.
    """
    with _reported(utterance):
        header = header_of(utterance.audio_filepath)
    _check_rate(header.rate, utterance, any_rate)
    _check_channels(header.channels, utterance, downmix)
    missing_s = utterance.offset + utterance.duration - header.length_s
    if missing_s > DURATION_TOLERANCE_S:
        raise _truncated(utterance, missing_s)
    return header


def audio_duration_s(path: str | Path, *, where: str = "") -> Seconds:
    """Duration of an audio file in seconds, as decoding gives it.

    Args:
        path: The file.
        where: ``file:line`` of the manifest that names the file, for messages. Default: "" (no manifest).

    Raises:
        AudioError: The file does not exist, is empty, is not audio or cannot be decoded.
    """
    with _reported(Utterance(id=Path(path).name, audio_filepath=str(path), duration=0.0, where=where)):
        source = open_source(path)
        try:
            return source.frames / source.rate
        finally:
            source.close()


def read_waveform(
    utterance: Utterance,
    *,
    downmix: Downmix = "mean",
    any_rate: bool = True,
    speed: float = 1.0,
    signals: list[Signal] | None = None,
) -> Tensor:
    """Samples of an utterance, float32 mono at 16 kHz.

    Args:
        utterance: Its ``channel`` selects one channel and overrides ``downmix``.
        downmix: What several channels become: their ``mean``, the ``first`` channel, or an error (``refuse``). Channels
            that cancel when mixed become one of them.
        any_rate: Whether files of other sample rates than 16 kHz are resampled. False refuses them.
        speed: Speed factor. Above 1, speech is faster, shorter and higher.
        signals: List to which the findings of the check of the samples are appended. Default: None (not kept).

    Returns:
        ``waveform_T`` of shape (T,).

    Raises:
        AudioError: The file does not exist, is empty, truncated or not audio, has samples that are not finite, or
            has channels or a sample rate that are refused.
    """
    with _reported(utterance), source_of(utterance.audio_filepath) as source:
        rate = source.rate
        _check_rate(rate, utterance, any_rate)
        start = round(utterance.offset * rate)
        wanted = round(utterance.duration * rate) if utterance.duration > 0 else source.frames - start
        samples_TC = source.read(start, max(0, wanted))
        scale = _scale(source, utterance.audio_filepath, samples_TC, whole=start == 0)
        lost, is_cut = source.lost, signals is not None and ends_early(utterance.audio_filepath)
    missing_s = utterance.duration - len(samples_TC) / rate
    if missing_s > DURATION_TOLERANCE_S:
        raise _truncated(utterance, missing_s)
    what = utterance.audio_filepath
    if len(samples_TC) == 0:
        remedy = "get the file again, or leave it out"
        raise AudioError(_where(utterance), f"no samples in {what}", remedy, "no_samples")
    samples_TC = _channels(samples_TC, utterance, downmix)
    samples_T, signal = _checked(samples_TC, scale, downmix, rate, where=_where(utterance), what=what)
    if signals is not None:
        signals.append(signal + Signal(lost=lost, cut=is_cut))
    waveform_T = resample(torch.from_numpy(np.ascontiguousarray(samples_T)), rate)
    # Two steps, because one step from 44.1 kHz times the factor to 16 kHz would need filters of 100 MB.
    return resample(waveform_T, round(speed * SAMPLE_RATE))


def waveform_of(
    samples: NDArray[np.generic] | Tensor,
    sample_rate: Hertz,
    *,
    name: str,
    downmix: Downmix = "mean",
    signals: list[Signal] | None = None,
) -> Tensor:
    """Samples in memory as float32 mono at 16 kHz.

    Args:
        samples: Shape ``(samples,)``, ``(channels, samples)`` or ``(samples, channels)``, with at most 32 channels.
            int8, uint8, int16, uint16 and int32 are scaled by their range. int64 and floats above 8 are taken for
            integers of 16 bits or more, see `ssl_asr.data.signal`.
        sample_rate: Sample rate.
        name: Name in messages.
        downmix, signals: See `read_waveform`.

    Raises:
        AudioError: The shape is ambiguous, the type is not one of numbers, or there are no or non-finite samples.
    """
    floats_TC, may_be_integers = _floats_of(samples, name)
    if not len(floats_TC):
        raise AudioError(name, "has no samples", "give at least one sample", "no_samples")
    if downmix == "refuse" and floats_TC.shape[1] > 1:
        raise AudioError(name, f"{floats_TC.shape[1]} channels", "give one channel, or downmix='mean'", "many_channels")
    try:
        scale = _scale_of(*_extent(floats_TC)) if may_be_integers else None
    except MediaError as error:
        raise AudioError(name, error.what, error.remedy, error.reason) from None
    samples_T, signal = _checked(floats_TC, scale, downmix, sample_rate, where=name, what="the array")
    if signals is not None:
        signals.append(signal)
    return resample(torch.from_numpy(np.ascontiguousarray(samples_T)), sample_rate)


def _floats_of(samples: NDArray[np.generic] | Tensor, name: str) -> tuple[NDArray[np.float32], bool]:
    """float32 of shape (T, channels), and whether its values may be those of integers."""
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    kind, what = array.dtype.kind, f"samples of shape {array.shape} and type {array.dtype}"
    remedy = "give floats from -1 to 1, or integers, of shape (samples,) or (channels, samples)"
    if kind not in "iuf" or array.ndim not in (1, 2):
        raise AudioError(name, what, remedy, "bad_array")
    if array.ndim == 2:
        few = [size <= _MAX_CHANNELS for size in array.shape]
        if few[0] == few[1]:
            raise AudioError(name, f"{what}: it is not clear which dimension is the channels", remedy, "bad_array")
        array = array.T if few[0] else array
    else:
        array = array[:, None]
    if kind == "f" or array.dtype.itemsize == 8:
        # Numbers beyond float32 become infinite. They are an error later.
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32), True
    full = 2.0 ** (8 * array.dtype.itemsize - 1)
    return ((array.astype(np.float64) - (full if kind == "u" else 0.0)) / full).astype(np.float32), False


# Samples ------------------------------------------------------------------------------------------------------------


def _extent(samples_TC: NDArray[np.float32]) -> tuple[float, bool]:
    """Largest finite absolute value, and whether all samples are integers."""
    finite = np.isfinite(samples_TC)
    peak = float(np.max(np.abs(samples_TC), where=finite, initial=0.0))
    # A signalling NaN is "invalid" in a warning of NumPy. It is an error later.
    with np.errstate(invalid="ignore"):
        return peak, bool((samples_TC == np.rint(samples_TC)).all())


def _scale_of(peak: float, only_integers: bool) -> float | None:
    try:
        return integer_scale(peak, only_integers=only_integers)
    except OverflowError as error:
        raise MediaError(str(error), "export the file again", "out_of_range") from None


@lru_cache(maxsize=4096)
def _scale_of_file(key: FileKey) -> float | None:
    """Full scale of a float file by its largest sample, so that all its parts are scaled alike."""
    source = open_source(key.path)
    try:
        extents, start, size = [], 0, 60 * source.rate
        while len(block_TC := source.read(start, size)):
            extents.append(_extent(block_TC))
            start += len(block_TC)
    finally:
        source.close()
    peaks, integers = zip(*extents, strict=True) if extents else ((0.0,), (False,))
    return _scale_of(max(peaks), all(integers))


def _scale(source: Source, path: str, samples_TC: NDArray[np.float32], *, whole: bool) -> float | None:
    """Full scale of the samples, if they are integers that are stored as floats."""
    if not source.floats or not len(samples_TC):
        return None
    if whole and len(samples_TC) == source.frames:
        return _scale_of(*_extent(samples_TC))
    return _scale_of_file(FileKey.of(path))


def _checked(
    samples_TC: NDArray[np.float32], scale: float | None, downmix: Downmix, rate: Hertz, *, where: str, what: str
) -> tuple[NDArray[np.float32], Signal]:
    """Mono samples, and what `ssl_asr.data.signal` finds in them."""
    if not np.isfinite(samples_TC).all():
        raise AudioError(where, f"NaN or infinite samples in {what}", "export the file again", "non_finite")
    if scale is not None:
        samples_TC = samples_TC / np.float32(scale)
    samples_T, signal = mix(samples_TC, downmix, rate)
    return samples_T, measured(samples_T, signal + Signal(scaled=scale is not None))


def _channels(samples_TC: NDArray[np.float32], utterance: Utterance, downmix: Downmix) -> NDArray[np.float32]:
    """The channels that are read: the one that the utterance names, or all."""
    _check_channels(samples_TC.shape[1], utterance, downmix)
    if utterance.channel is None:
        return samples_TC
    return samples_TC[:, utterance.channel : utterance.channel + 1]


def _check_channels(channels: int, utterance: Utterance, downmix: Downmix) -> None:
    """Refuse an utterance that names a channel that its file lacks, or several channels if ``downmix`` does."""
    where = _where(utterance)
    if utterance.channel is not None:
        if utterance.channel >= channels:
            what = f"channel {utterance.channel} of {channels} in {utterance.audio_filepath}"
            raise AudioError(where, what, "channels are numbered from 0", "no_such_channel")
    elif channels > 1 and downmix == "refuse":
        what = f"{channels} channels in {utterance.audio_filepath}"
        raise AudioError(where, what, "set downmix=mean (data.downmix=mean in training), or 'channel'", "many_channels")


def _check_rate(rate: Hertz, utterance: Utterance, any_rate: bool) -> None:
    """Refuse a file of another sample rate if they are not resampled."""
    if rate != SAMPLE_RATE and not any_rate:
        what = f"{utterance.audio_filepath} has {rate:,} Hz, expected {SAMPLE_RATE:,} Hz"
        raise AudioError(_where(utterance), what, "resample the file, or set data.resample=true", "other_rate")


# Sample rates -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _resampler(rate: Hertz) -> nn.Module:
    from torchaudio.transforms import Resample

    resampler: nn.Module = Resample(rate, SAMPLE_RATE)
    return resampler


def resample(waveform_T: Tensor, rate: Hertz) -> Tensor:
    """Resample a waveform from ``rate`` Hz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform_T
    common = math.gcd(rate, SAMPLE_RATE)
    if (rate // common) * (SAMPLE_RATE // common) > _MAX_FILTER:
        return _resampled_by_ffmpeg(waveform_T, rate)
    with torch.inference_mode():
        resampled: Tensor = _resampler(rate)(waveform_T)
    return resampled.clone()


def _resampled_by_ffmpeg(waveform_T: Tensor, rate: Hertz) -> Tensor:
    """For rates without a large common divisor with 16 kHz, such as 44,101 Hz."""
    wanted: Samples = math.ceil(len(waveform_T) * SAMPLE_RATE / rate)
    converter = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    resampled_T = np.zeros(wanted, dtype=np.float32)
    done = 0
    for block_T in (*torch.split(waveform_T, _RESAMPLED_AT_A_TIME), None):
        for part in converter.resample(None if block_T is None else audio_frame(block_T, rate)):
            samples_T = part.to_ndarray()[0][: wanted - done]
            resampled_T[done : done + len(samples_T)] = samples_T
            done += len(samples_T)
    return torch.from_numpy(resampled_T)


def audio_frame(waveform_T: Tensor, rate: Hertz) -> av.AudioFrame:
    """A waveform of shape (T,), float32, as FFmpeg's converters and filters take it."""
    frame = av.AudioFrame.from_ndarray(waveform_T.numpy()[None], format="flt", layout="mono")
    frame.sample_rate = rate
    return frame
