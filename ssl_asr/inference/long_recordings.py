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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ssl_asr.data.dataset import collate
from ssl_asr.data.vad import Span
from ssl_asr.decoding.alignment import Measure
from ssl_asr.decoding.segments import transcript
from ssl_asr.errors import ConfigError
from ssl_asr.inference.languages import with_languages
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.recognizer import Recognizer, SegmentsCallback
from ssl_asr.inference.recording import ProgressCallback, Recording, no_progress
from ssl_asr.inference.voice import most_in_batch, part_languages, transcribe_by_voice
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.module import TEXT_ONLY, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Batch, Example, Hypothesis, Samples, Seconds, Segment

# Longest distance of the start of a window from the last timestamp of the window before it.
_SEAM_S: Seconds = 2.0
# Audio at the end of a recording is not decoded if it is shorter than one encoder frame.
_MIN_REST_S: Seconds = 0.02


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
    size = most_in_batch(module.speech_encoder, long_form.chunk_s, long_form.batch_s)
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
    on_segments: SegmentsCallback | None = None,
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
        new = [segment.later(start) for segment in kept]
        segments += new
        if on_segments is not None:
            on_segments(new if options.confidence is not None else [replace(segment, words=()) for segment in new])
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


# Choice of the method ----------------------------------------------------------------------------------------


@torch.inference_mode()
def transcribe_long(
    module: Recognizer,
    recording: Recording,
    long_form: LongForm,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
    on_segments: SegmentsCallback | None = None,
) -> Hypothesis:
    """Transcribe a recording that is too long for one pass.

    Args:
        module: The model.
        recording: The recording.
        long_form: How it is split.
        options: What to return besides text.
        progress: Called with the seconds that are done.
        on_segments: Called with segments as they are done. Times of words next to a seam may differ a little from the
            result's. With windows and ``vad=False``, there is one search over the whole recording, and no call.

    Raises:
        AudioError: The recording cannot be read.
        ConfigError: The model can transcribe long recordings by voice activity only.
    """
    if long_form.vad is not False:
        return transcribe_by_voice(module, recording, long_form, options, progress, on_segments)
    if module.long_form == "windows":
        windowed: WindowedModule = module  # type: ignore[assignment]  # by the contract of `LongFormMethod`
        return transcribe_by_windows(windowed, recording, long_form, options, progress)
    if module.long_form == "timestamps":
        timestamped: TimestampModule = module  # type: ignore[assignment]
        languages, _ = part_languages(module, recording, _probes(module, recording, long_form), long_form)
        known = recording.with_language(languages[0].lang) if languages else recording
        found = transcribe_by_timestamps(timestamped, known, options, progress, on_segments)
        return with_languages(found, languages) if languages else found
    what = "the attention decoder transcribes one window at most"
    raise ConfigError("decoder", what, "remove vad=false, or use decoder=ctc_greedy or decoder=ctc_beam")


def _probes(module: Recognizer, recording: Recording, long_form: LongForm) -> list[Span]:
    """Where the language is detected: parts with speech, or windows of the whole recording if there is no speech."""
    if not module.detects_language(recording.utterance):
        return []
    longest_s = module.longest_pass_s(long_form.chunk_s)
    speech, total = recording.speech(longest_s), recording.utterance.duration
    count = math.ceil(total / longest_s)
    return speech or [(i * longest_s, min(total, (i + 1) * longest_s)) for i in range(count)]
