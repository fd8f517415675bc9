"""Where there is speech in a recording, by Silero's voice activity detector, in flat memory."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ssl_asr.data.audio import read_waveform
from ssl_asr.errors import missing_extra
from ssl_asr.types import SAMPLE_RATE, Seconds, Utterance

# Samples looked at at a time.
_BLOCK_S: Seconds = 300.0
# Speech that goes on over the end of a block is one stretch.
_JOINED_S: Seconds = 0.1


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        from silero_vad import load_silero_vad
    except ImportError:
        raise missing_extra("vad=true", "silero-vad", "vad", "vad=false") from None
    return load_silero_vad()


def speech_spans(
    utterance: Utterance, *, longest_s: Seconds, whole_T: Tensor | None = None
) -> list[tuple[Seconds, Seconds]]:
    """Beginnings and ends of speech, in seconds from the utterance's own beginning, none longer than ``longest_s``.

    Args:
        utterance: what to listen to.
        longest_s: speech that goes on for longer is parted where it is quietest.
        whole_T: its samples, where they are at hand.

    Raises:
        AudioError: it cannot be read.
    """
    detector = _detector()
    from silero_vad import get_speech_timestamps

    spans: list[tuple[Seconds, Seconds]] = []
    for start_s, block_T in _blocks(utterance, whole_T):
        found = get_speech_timestamps(
            block_T, detector, sampling_rate=SAMPLE_RATE, max_speech_duration_s=longest_s, speech_pad_ms=100
        )
        for one in found:
            start, end = (start_s + one[key] / SAMPLE_RATE for key in ("start", "end"))
            if spans and start - spans[-1][1] < _JOINED_S and end - spans[-1][0] <= longest_s:
                start = spans.pop()[0]
            spans.append((start, end))
    return spans


def _blocks(utterance: Utterance, whole_T: Tensor | None) -> Iterator[tuple[Seconds, Tensor]]:
    start_s = 0.0
    while start_s < utterance.duration:
        length_s = min(_BLOCK_S, utterance.duration - start_s)
        if whole_T is None:
            part = replace(utterance, offset=utterance.offset + start_s, duration=length_s)
            yield start_s, read_waveform(part)
        else:
            yield start_s, whole_T[round(start_s * SAMPLE_RATE) : round((start_s + length_s) * SAMPLE_RATE)]
        start_s += length_s


def packed(spans: list[tuple[Seconds, Seconds]], *, longest_s: Seconds) -> list[tuple[Seconds, Seconds]]:
    """Neighbouring spans joined, the silence between them included, as far as they fit into ``longest_s``.

    Example:
        >>> packed([(0.0, 2.0), (3.0, 9.0), (12.0, 13.0)], longest_s=10.0)
        [(0.0, 9.0), (12.0, 13.0)]
    """
    joined: list[tuple[Seconds, Seconds]] = []
    for start, end in spans:
        if joined and end - joined[-1][0] <= longest_s:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
