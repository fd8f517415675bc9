"""Voice activity detection with Silero VAD, in constant memory."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ssl_asr.data.audio import read_waveform
from ssl_asr.errors import missing_extra
from ssl_asr.types import SAMPLE_RATE, Downmix, Seconds, Utterance

# Audio in memory at a time.
_BLOCK_S: Seconds = 300.0
# Spans with a shorter pause between them are merged, so that a block edge does not split a span.
_MIN_PAUSE_S: Seconds = 0.1


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        from silero_vad import load_silero_vad
    except ImportError:
        raise missing_extra("vad=true", "silero-vad", "vad", "vad=false") from None
    return load_silero_vad()


def speech_spans(
    utterance: Utterance, *, longest_s: Seconds, whole_T: Tensor | None = None, downmix: Downmix = "mean"
) -> list[tuple[Seconds, Seconds]]:
    """Spans of speech as ``(start, end)``, in seconds from the start of the utterance.

    Args:
        utterance: The recording.
        longest_s: Maximum length of a span, in seconds. Longer speech is split at its longest pause.
        whole_T: float32, samples of the utterance at 16 kHz. Default: None (read them block by block).
        downmix: What several channels of the file become.

    Raises:
        AudioError: The audio cannot be read.
        ConfigError: silero-vad is not installed.
    """
    detector = _detector()
    from silero_vad import get_speech_timestamps

    spans: list[tuple[Seconds, Seconds]] = []
    for start_s, block_T in _blocks(utterance, whole_T, downmix):
        found = get_speech_timestamps(
            block_T, detector, sampling_rate=SAMPLE_RATE, max_speech_duration_s=longest_s, speech_pad_ms=100
        )
        for one in found:
            start, end = (start_s + one[key] / SAMPLE_RATE for key in ("start", "end"))
            if spans and start - spans[-1][1] < _MIN_PAUSE_S and end - spans[-1][0] <= longest_s:
                start = spans.pop()[0]
            spans.append((start, end))
    return spans


def _blocks(utterance: Utterance, whole_T: Tensor | None, downmix: Downmix) -> Iterator[tuple[Seconds, Tensor]]:
    start_s = 0.0
    while start_s < utterance.duration:
        length_s = min(_BLOCK_S, utterance.duration - start_s)
        if whole_T is None:
            part = replace(utterance, offset=utterance.offset + start_s, duration=length_s)
            yield start_s, read_waveform(part, downmix=downmix)
        else:
            yield start_s, whole_T[round(start_s * SAMPLE_RATE) : round((start_s + length_s) * SAMPLE_RATE)]
        start_s += length_s


def packed(spans: list[tuple[Seconds, Seconds]], *, longest_s: Seconds) -> list[tuple[Seconds, Seconds]]:
    """Merge neighboring spans, with the pauses between them, into spans of at most ``longest_s`` seconds.

    Example:
        >>> packed([(0.0, 2.0), (3.0, 9.0), (12.0, 13.0)], longest_s=10.0)
        [(0.0, 9.0), (12.0, 13.0)]
    """
    merged: list[tuple[Seconds, Seconds]] = []
    for start, end in spans:
        if merged and end - merged[-1][0] <= longest_s:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
