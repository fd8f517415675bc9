"""A recording that is read part by part."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.signal import Signal
from ssl_asr.data.vad import Span, speech_parts
from ssl_asr.types import SAMPLE_RATE, Downmix, Example, Seconds, Utterance

ProgressCallback = Callable[[Seconds], None]
"""Called with the number of seconds of a recording that are transcribed so far."""


def no_progress(_: Seconds) -> None:
    """A `ProgressCallback` that does nothing."""


def go_on() -> None:
    """A check before each part of the audio that never gives up."""


class Recording:
    """A recording, read part by part from its file or taken from samples in memory.

    Args:
        utterance: The whole recording.
        whole_T: All its samples (float32, 16 kHz) if they are in memory, or None to read the file.
        downmix: What several channels of the file become.
        signals: Findings of the check of the samples, to which those of each part that is read are added. None for
            a new list.
        check: Called before each part is read. It can raise an error to give up.
    """

    def __init__(
        self,
        utterance: Utterance,
        whole_T: Tensor | None = None,
        *,
        downmix: Downmix = "mean",
        signals: list[Signal] | None = None,
        check: Callable[[], None] = go_on,
    ) -> None:
        self.utterance, self._whole_T, self._downmix = utterance, whole_T, downmix
        self.signals: list[Signal] = [] if signals is None else signals
        self._check = check

    def part(self, start: Seconds, duration: Seconds, **changes: str | None) -> Example:
        """The samples from ``start`` on, as an example without target; ``changes`` replace fields of the utterance.

        Raises:
            AudioError: The file cannot be read.
        """
        self._check()
        whole = self.utterance
        part = replace(whole, offset=whole.offset + start, duration=duration, **changes)  # type: ignore[arg-type]
        if self._whole_T is None:
            return Example(part, read_waveform(part, downmix=self._downmix, signals=self.signals), [])
        first = round(start * SAMPLE_RATE)
        return Example(part, self._whole_T[first : first + round(duration * SAMPLE_RATE)], [])

    def speech(self, longest_s: Seconds, within: Span | None = None) -> list[Span]:
        """Start and end of each part with speech, in seconds of the recording.

        Args:
            longest_s: Longest part.
            within: Where to look. None looks everywhere.
        """
        first, last = within or (0.0, self.utterance.duration)

        def read(start: Seconds, duration: Seconds) -> Tensor:
            return self.part(first + start, duration).waveform_T

        spans = speech_parts(read, duration=last - first, longest_s=longest_s)
        return [(first + start, first + end) for start, end in spans]

    def with_language(self, lang: str) -> "Recording":
        """The same recording. If it has no language, it gets ``lang``."""
        whole = replace(self.utterance, lang=self.utterance.lang or lang)
        return Recording(whole, self._whole_T, downmix=self._downmix, signals=self.signals, check=self._check)

    def checked(self, check: Callable[[], None]) -> "Recording":
        """The same recording, with a check before each part is read."""
        return Recording(self.utterance, self._whole_T, downmix=self._downmix, signals=self.signals, check=check)
