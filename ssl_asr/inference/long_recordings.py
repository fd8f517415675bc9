"""Recordings that are too long for one pass.

Three methods, chosen by ``vad`` and by what the model can do:

    windows (CTC)              timestamps (Whisper)               voice activity (any model)

    |======|                   |======>                           |===| |=====|  |==|
         |======|                     |====>                      parts of speech, transcribed in batches
              |======|                      |=====>
    middles of the windows     next window starts after the
    joined, then one search    last complete segment

A recording is read one window or batch at a time, so memory does not grow with its length.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.signal import Signal
from ssl_asr.data.vad import Span, speech_parts
from ssl_asr.decoding.alignment import Measure
from ssl_asr.decoding.segments import transcript
from ssl_asr.errors import ConfigError
from ssl_asr.inference.languages import Detected, Encoded, detect, with_languages
from ssl_asr.inference.long_form import LongForm
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.module import TEXT_ONLY, ASRModule, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Batch, Downmix, Example, Hypothesis, Samples, Seconds, Segment, Utterance

ProgressCallback = Callable[[Seconds], None]
"""Called with the number of seconds of a recording that are transcribed so far."""

# Longest distance of the start of a window from the last timestamp of the window before it.
_SEAM_S: Seconds = 2.0
# Audio at the end of a recording is not decoded if it is shorter than one encoder frame.
_MIN_REST_S: Seconds = 0.02


def no_progress(_: Seconds) -> None:
    """A `ProgressCallback` that does nothing."""


class Recording:
    """A recording, read part by part from its file or taken from samples in memory.

    Args:
        utterance: The whole recording.
        whole_T: All its samples (float32, 16 kHz) if they are in memory, or None to read the file.
        downmix: What several channels of the file become.

    Attributes:
        signals: Findings of the check of the samples, of each part that was read.
    """

    def __init__(self, utterance: Utterance, whole_T: Tensor | None = None, *, downmix: Downmix = "mean") -> None:
        self.utterance, self._whole_T, self._downmix = utterance, whole_T, downmix
        self.signals: list[Signal] = []

    def part(self, start: Seconds, duration: Seconds, **changes: str | None) -> Example:
        """The samples from ``start`` on, as an example without target; ``changes`` replace fields of the utterance.

        Raises:
            AudioError: The file cannot be read.
        """
        whole = self.utterance
        part = replace(whole, offset=whole.offset + start, duration=duration, **changes)  # type: ignore[arg-type]
        if self._whole_T is None:
            return Example(part, read_waveform(part, downmix=self._downmix, signals=self.signals), [])
        first = round(start * SAMPLE_RATE)
        return Example(part, self._whole_T[first : first + round(duration * SAMPLE_RATE)], [])

    def speech(self, longest_s: Seconds) -> list[Span]:
        """Start and end of each part with speech, in seconds. Parts are at most ``longest_s`` long."""

        def read(start: Seconds, duration: Seconds) -> Tensor:
            return self.part(start, duration).waveform_T

        return speech_parts(read, duration=self.utterance.duration, longest_s=longest_s)

    def with_language(self, lang: str) -> "Recording":
        """The same recording. If it has no language, it gets ``lang``."""
        whole = replace(self.utterance, lang=self.utterance.lang or lang)
        same = Recording(whole, self._whole_T, downmix=self._downmix)
        same.signals = self.signals
        return same


class WindowedModule(Protocol):
    """Model interface of `transcribe_by_windows`: log-probabilities of frames, and a search over them."""

    @property
    def frame_s(self) -> Seconds:
        """Seconds from a frame to the next."""

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """The encoder."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frames for a number of samples."""

    def log_probs(self, batch: Batch, out: EncoderOutput | None = None) -> tuple[Tensor, Tensor]:
        """``log_probs_BFV`` and the number of frames of each utterance."""

    def transcribe_log_probs(self, utterance_id: str, log_probs_FV: Tensor, options: TranscribeOptions) -> Hypothesis:
        """The search's best text given all log-probabilities of a recording."""


class TimestampModule(Protocol):
    """Model interface of `transcribe_by_timestamps`: segments with times in a window."""

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """The encoder."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """One hypothesis for each utterance."""

    def confidence_measure(self, measure: Measure, *, required: bool) -> Measure | None:
        """The measure if the model can time words."""

    def segments_of(self, hypothesis: Hypothesis, duration: Seconds) -> tuple[list[Segment], Seconds]:
        """The complete segments, with which the segments of a hypothesis begin, and their last timestamp."""


# Windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a recording, and which of its frames are kept.

    Attributes:
        start, end: First sample, and the sample after the last one.
        first_frame: Frame of the recording at the window's first sample.
        keep_from, keep_to: Kept frames, counted from the start of the recording.
    """

    start: Samples
    end: Samples
    first_frame: int
    keep_from: int
    keep_to: int


def windows(total: Samples, *, window: Samples, stride: Samples, hop: Samples, frames: int) -> list[Window]:
    """Windows that overlap by twice the stride. They start at whole frames, and their kept frames cover the recording.

    Args:
        total: Number of samples of the recording.
        window: Number of samples of a window.
        stride: Number of samples at either end of a window that only provide context.
        hop: Number of samples from a frame to the next.
        frames: Number of frames of the recording.
    """
    window, stride = window - window % hop, stride - stride % hop
    step = window - 2 * stride
    assert step > 0, "the strides leave nothing of a window"
    made: list[Window] = []
    start = 0
    while True:
        last = start + window >= total
        keep_from = 0 if not made else made[-1].keep_to
        keep_to = frames if last else (start + window - stride) // hop
        made.append(Window(start, min(total, start + window), start // hop, keep_from, keep_to))
        if last:
            return made
        start += step


def transcribe_by_windows(
    module: WindowedModule,
    recording: Recording,
    long_form: LongForm,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
) -> Hypothesis:
    """Encode overlapping windows in batches, join the log-probabilities of their middles, and search once.

    A recording that fits into one window gets the same text as in one pass.
    """
    utterance = recording.utterance
    hop = round(module.frame_s * SAMPLE_RATE)
    total = round(utterance.duration * SAMPLE_RATE)
    plan = windows(
        total,
        window=round(long_form.chunk_s * SAMPLE_RATE),
        stride=round(long_form.stride_s * SAMPLE_RATE),
        hop=hop,
        frames=_frames(module, total, hop),
    )
    size = max(1, int(long_form.batch_s / long_form.chunk_s))
    kept: list[Tensor] = []
    for first in range(0, len(plan), size):
        group = plan[first : first + size]
        batch = collate([_example(recording, window) for window in group])
        log_probs_BFV, lengths_B = module.log_probs(batch.to(module.device))
        for window, log_probs_FV, length in zip(group, log_probs_BFV, lengths_B.tolist(), strict=True):
            # Kept frames, counted from the start of the window.
            low, high = window.keep_from - window.first_frame, min(length, window.keep_to - window.first_frame)
            kept.append(log_probs_FV[low:high])
        progress(group[-1].end / SAMPLE_RATE)
    found = module.transcribe_log_probs(utterance.id, torch.cat(kept), options)
    return transcript(found, duration=utterance.duration)


def _example(recording: Recording, window: Window) -> Example:
    return recording.part(window.start / SAMPLE_RATE, (window.end - window.start) / SAMPLE_RATE)


def _frames(module: WindowedModule, total: Samples, hop: Samples) -> int:
    """Number of frames for a number of samples, which may be more than the encoder can take."""
    limit = module.speech_encoder.max_s
    # The encoder counts the frames up to its limit. After the limit, there is one frame per hop.
    within = total if limit is None else min(total, int(limit * SAMPLE_RATE) // hop * hop)
    frames = int(module.frame_lengths(torch.tensor([within]))[0])
    return frames + (total - within) // hop


# Timestamps --------------------------------------------------------------------------------------------------


def transcribe_by_timestamps(
    module: TimestampModule,
    recording: Recording,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
) -> Hypothesis:
    """Decode one window after the other with timestamps, and join the complete segments.

    A window is cut once, for text and words: its complete segments are kept, and the next window starts where `_seam`
    says. Words are timed for the cut even if they are not requested, so the text is the same with and without them.
    The language is detected once, in the first window.
    """
    utterance = recording.utterance
    measure = options.confidence or module.confidence_measure("max_prob", required=False)
    timed = replace(options, timestamps=True, confidence=measure)
    segments: list[Segment] = []
    scores: list[float] = []
    start, lang, detected = 0.0, utterance.lang, None
    window_s = module.speech_encoder.max_s
    assert window_s is not None
    while utterance.duration - start > _MIN_REST_S:
        duration = min(window_s, utterance.duration - start)
        batch = collate([recording.part(start, duration, lang=lang)])
        [hypothesis] = module.transcribe(batch.to(module.device), options=timed)
        detected = detected or hypothesis.detected
        lang = lang or hypothesis.detected
        kept, last_time = module.segments_of(hypothesis, duration)
        next_start = _seam(kept, hypothesis.segments[len(kept) :], last_time, duration)
        if utterance.duration - start - next_start <= _MIN_REST_S:
            # No window follows, so the unfinished text is kept, too.
            kept = hypothesis.segments
        segments += [segment.later(start) for segment in kept]
        scores.append(hypothesis.score)
        start += next_start
        progress(start)
    score = sum(scores) / max(1, len(scores))
    whole = transcript(
        Hypothesis(utterance.id, "", score, detected=detected, segments=segments), duration=utterance.duration
    )
    if options.confidence is not None:
        return whole
    return replace(whole, words=[], segments=[replace(segment, words=()) for segment in whole.segments])


def _seam(kept: Sequence[Segment], unfinished: Sequence[Segment], last_time: Seconds, duration: Seconds) -> Seconds:
    """Second of a window at which the next window starts.

    Timestamps may lie inside a word, which both windows would then transcribe. The seam is in the middle between the
    last kept word and the first unfinished word, or else at the last timestamp, but not before the end of the last
    kept word.

    Args:
        kept: Complete segments of the window.
        unfinished: The text after them.
        last_time: The last timestamp of the complete segments. The seam is at most two seconds away from it.
        duration: Of the window.
    """
    if last_time >= duration or not kept or not kept[-1].words:
        return last_time
    end = kept[-1].words[-1].end
    seam = max(end, last_time)
    if unfinished and unfinished[0].words:
        seam = (end + unfinished[0].words[0].start) / 2
    nearest = min(max(seam, last_time - _SEAM_S), last_time + _SEAM_S)
    return min(nearest, duration)


# Voice activity ----------------------------------------------------------------------------------------------


def transcribe_by_voice(
    module: ASRModule,
    recording: Recording,
    long_form: LongForm,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
) -> Hypothesis:
    """Transcribe the parts with speech in batches of similar length, and join their texts."""
    utterance = recording.utterance
    spans = recording.speech(module.longest_pass_s(long_form.chunk_s))
    if not spans:
        progress(utterance.duration)
        return Hypothesis(utterance.id, "", 0.0, no_speech=True)
    durations = [end - start for start, end in spans]
    silence_s = utterance.duration - sum(durations)
    languages, encoded = _languages(module, recording, spans, long_form)
    found: dict[int, Hypothesis] = {}
    for one in encoded:
        hypotheses = module.transcribe(one.batch, one.out, options)
        found |= dict(zip(one.rows, hypotheses, strict=True))
        progress(silence_s + sum(durations[row] for row in found))
    left = [row for row in range(len(spans)) if row not in found]
    for group in batches(module.speech_encoder, [durations[row] for row in left], long_form.batch_s):
        rows = [left[place] for place in group]
        parts = [_part(recording, spans, row, languages) for row in rows]
        hypotheses = module.transcribe(collate(parts).to(module.device), options=options)
        found |= dict(zip(rows, hypotheses, strict=True))
        progress(silence_s + sum(durations[row] for row in found))
    joined = _joined(utterance.id, [found[row] for row in range(len(spans))], spans)
    return with_languages(joined, languages) if languages else joined


def _part(recording: Recording, spans: Sequence[Span], row: int, languages: Sequence[Detected] = ()) -> Example:
    """A part of a recording. If the recording has no language, the part has the detected one."""
    (start, end), whole = spans[row], recording.utterance
    lang = whole.lang if whole.lang is not None or not languages else languages[row].lang
    return recording.part(start, end - start, id=f"{whole.id}#{row}", lang=lang)


def _languages(
    module: ASRModule, recording: Recording, spans: Sequence[Span], long_form: LongForm
) -> tuple[list[Detected], list[Encoded]]:
    """The language of each part, and the encoded parts. Both are empty if the language is not detected."""
    if not module.detects_language(recording.utterance):
        return [], []
    return detect(
        module,
        spans,
        part=lambda row: _part(recording, spans, row),
        batches=lambda durations: list(batches(module.speech_encoder, durations, long_form.batch_s)),
        every_s=long_form.detect_every_s,
    )


def _joined(
    utterance_id: str, hypotheses: Sequence[Hypothesis], spans: Sequence[tuple[Seconds, Seconds]]
) -> Hypothesis:
    """Joins the hypotheses of consecutive parts. A part without segments becomes one segment."""
    segments: list[Segment] = []
    for hypothesis, (start, end) in zip(hypotheses, spans, strict=True):
        whole = [Segment(hypothesis.text, 0.0, end - start, 1.0, tuple(hypothesis.words))] if hypothesis.text else []
        segments += [segment.later(start) for segment in hypothesis.segments or whole]
    joined = Hypothesis(
        utterance_id,
        "",
        sum(one.score for one in hypotheses) / max(1, len(hypotheses)),
        detected=next((one.detected for one in hypotheses if one.detected), None),
        segments=segments,
    )
    return transcript(joined, duration=max((end for _, end in spans), default=0.0))


def batches(encoder: SpeechEncoder, durations: Sequence[Seconds], batch_s: Seconds) -> Iterator[list[int]]:
    """Indices of recordings of similar length, longest first, with up to ``batch_s`` encoded seconds in a batch."""
    remaining = sorted(range(len(durations)), key=durations.__getitem__)
    while remaining:
        size = max(1, int(batch_s / encoder.encoded_s(durations[remaining[-1]])))
        batch, remaining = remaining[-size:], remaining[:-size]
        yield batch


# Choice of the method ----------------------------------------------------------------------------------------


@torch.inference_mode()
def transcribe_long(
    module: ASRModule,
    recording: Recording,
    long_form: LongForm,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
) -> Hypothesis:
    """Transcribe a recording that is too long for one pass.

    Raises:
        AudioError: The recording cannot be read.
        ConfigError: The model can transcribe long recordings by voice activity only.
    """
    if long_form.vad is not False:
        return transcribe_by_voice(module, recording, long_form, options, progress)
    if module.long_form == "windows":
        windowed: WindowedModule = module  # type: ignore[assignment]  # by the contract of `LongFormMethod`
        return transcribe_by_windows(windowed, recording, long_form, options, progress)
    if module.long_form == "timestamps":
        timestamped: TimestampModule = module  # type: ignore[assignment]
        languages, _ = _languages(module, recording, _probes(module, recording, long_form), long_form)
        known = recording.with_language(languages[0].lang) if languages else recording
        found = transcribe_by_timestamps(timestamped, known, options, progress)
        return with_languages(found, languages) if languages else found
    what = "the attention decoder transcribes one window at most"
    raise ConfigError("decoder", what, "remove vad=false, or use decoder=ctc_greedy or decoder=ctc_beam")


def _probes(module: ASRModule, recording: Recording, long_form: LongForm) -> list[Span]:
    """Where the language is detected: parts with speech, or windows of the whole recording if there is no speech."""
    if not module.detects_language(recording.utterance):
        return []
    longest_s = module.longest_pass_s(long_form.chunk_s)
    speech, total = recording.speech(longest_s), recording.utterance.duration
    count = math.ceil(total / longest_s)
    return speech or [(i * longest_s, min(total, (i + 1) * longest_s)) for i in range(count)]
