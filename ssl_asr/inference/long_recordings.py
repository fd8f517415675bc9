"""Recordings longer than a model can take at once: CTC by overlapping windows, Whisper from segment to segment."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_asr.build.assembly import encoder_of
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.vad import packed, speech_spans
from ssl_asr.decoding.seq2seq import AttentionBeam, AttentionGreedy
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.report import Prediction
from ssl_asr.models.whisper import WINDOW_S, WhisperEncoder
from ssl_asr.training.ctc import CTCModule
from ssl_asr.training.joint import JointModule
from ssl_asr.training.module import ASRModule
from ssl_asr.training.seq2seq import Seq2SeqModule
from ssl_asr.types import SAMPLE_RATE, Example, Hypothesis, Samples, Seconds, Utterance, Word

# Told how many seconds of a recording have been heard so far.
Told = Callable[[Seconds], None]


def _nobody(_: Seconds) -> None:
    return


@dataclass(frozen=True, kw_only=True)
class LongForm:
    """How long recordings are taken apart.

    Attributes:
        chunk_s: seconds of a window; recordings of no more are taken whole.
        stride_s: seconds at either end of a window that only lend context to its middle.
        batch_s: seconds of audio in a batch of windows.
        vad: take them apart where nobody speaks, whatever the model, and hear the parts in batches.
    """

    chunk_s: Seconds
    stride_s: Seconds
    batch_s: Seconds
    vad: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a recording: what is read, and which of its frames are kept, in frames of the whole.

    Frames are counted from the beginning of the recording; ``first_frame`` is that of the window's first sample.
    """

    start: Samples
    end: Samples
    first_frame: int
    keep_from: int
    keep_to: int


def windows(total: Samples, *, window: Samples, stride: Samples, hop: Samples, frames: int) -> list[Window]:
    """Windows that overlap by twice the stride, starting at whole frames, whose kept frames are all there are.

    Args:
        total: samples of the recording.
        window: samples of a window.
        stride: samples at either end that only lend context.
        hop: samples from a frame to the next.
        frames: of the whole recording.
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


def _samples(part: Utterance, whole_T: Tensor | None) -> Tensor:
    """The samples of a part of a recording, from its file or from all its samples."""
    if whole_T is None:
        return read_waveform(part)
    start = round(part.offset * SAMPLE_RATE)
    return whole_T[start : start + round(part.duration * SAMPLE_RATE)]


def ctc_long(
    module: CTCModule, utterance: Utterance, options: LongForm, whole_T: Tensor | None = None, told: Told = _nobody
) -> Hypothesis:
    """What a CTC model hears in a long recording: windows encoded in batches, their middles joined, one search.

    A recording that fits into a window gets what it gets in one pass. Samples are read a batch of windows at a time,
    or taken from ``whole_T``, all those of the recording.
    """
    hop = round(module.frame_s * SAMPLE_RATE)
    total = round(utterance.duration * SAMPLE_RATE)
    # Counted on a stretch that no window's limit cuts short.
    frames = _frames(module, total, hop)
    plan = windows(
        total,
        window=round(options.chunk_s * SAMPLE_RATE),
        stride=round(options.stride_s * SAMPLE_RATE),
        hop=hop,
        frames=frames,
    )
    size = max(1, int(options.batch_s / options.chunk_s))
    parts: list[Tensor] = []
    for first in range(0, len(plan), size):
        own = plan[first : first + size]
        batch = collate([Example(part, _samples(part, whole_T), []) for part in _parts(utterance, own)])
        log_probs_BFV, lengths_B = module.log_probs(batch.to(module.device))
        for one, log_probs_FV, length in zip(own, log_probs_BFV, lengths_B.tolist(), strict=True):
            low, high = one.keep_from - one.first_frame, min(length, one.keep_to - one.first_frame)
            parts.append(log_probs_FV[low:high])
        told(own[-1].end / SAMPLE_RATE)
    return module.hear(utterance.id, torch.cat(parts))


def _frames(module: CTCModule, total: Samples, hop: Samples) -> int:
    """Frames of so many samples, as if the encoder had no limit."""
    limit = encoder_of(module).max_s
    most = total if limit is None else min(total, int(limit * SAMPLE_RATE) // hop * hop)
    whole = int(module.frame_lengths(torch.tensor([most]))[0])
    return whole + (total - most) // hop


def _parts(utterance: Utterance, plan: Sequence[Window]) -> Iterator[Utterance]:
    for one in plan:
        offset, duration = utterance.offset + one.start / SAMPLE_RATE, (one.end - one.start) / SAMPLE_RATE
        yield replace(utterance, offset=offset, duration=duration)


def whisper_long(
    module: Seq2SeqModule, utterance: Utterance, whole_T: Tensor | None = None, told: Told = _nobody
) -> Hypothesis:
    """What Whisper hears in a long recording, window after window, each beginning where the last phrase ended.

    The decoder writes timestamps for it, whatever its option says. The language is heard once, at the beginning. One
    window of samples is read at a time, or taken from ``whole_T``, all those of the recording.
    """
    plain, module.decoder = module.decoder, replace(module.decoder, timestamps=True)
    try:
        return _segment_by_segment(module, utterance, whole_T, told)
    finally:
        module.decoder = plain


def _segment_by_segment(module: Seq2SeqModule, utterance: Utterance, whole_T: Tensor | None, told: Told) -> Hypothesis:
    said: list[Word] = []
    words: list[Word] = []
    scores: list[float] = []
    at, lang, detected = 0.0, utterance.lang, None
    window_s = module.model.encoder.max_s
    assert window_s is not None
    # Less than a frame of speech is none.
    while utterance.duration - at > 0.02:
        duration = min(window_s, utterance.duration - at)
        part = replace(utterance, offset=utterance.offset + at, duration=duration, lang=lang)
        batch = collate([Example(part, _samples(part, whole_T), [])])
        (heard,) = module.transcribe(batch.to(module.device))
        detected = detected or heard.detected
        lang = lang or heard.detected
        own, until = module.phrases(heard, duration)
        said += [one.later(at) for one in own]
        # What was not heard to its end is heard again by the next window.
        words += [one.later(at) for one in heard.words if one.start < until]
        scores.append(heard.score)
        at += until
        told(at)
    text = " ".join(one.text for one in said)
    score = sum(scores) / max(1, len(scores))
    return Hypothesis(utterance.id, text, score, detected=detected, segments=said, words=words)


def by_voice(
    module: ASRModule, utterance: Utterance, options: LongForm, whole_T: Tensor | None = None, told: Told = _nobody
) -> Hypothesis:
    """What a model hears of the stretches of speech in a long recording, in batches of like length."""
    longest_s = too_long(module, options)
    spans = packed(speech_spans(utterance, longest_s=longest_s, whole_T=whole_T), longest_s=longest_s)
    parts = [
        replace(utterance, id=f"{utterance.id}#{place}", offset=utterance.offset + start, duration=end - start)
        for place, (start, end) in enumerate(spans)
    ]
    heard: dict[int, Hypothesis] = {}
    for own in batches(module, [part.duration for part in parts], options.batch_s):
        batch = collate([Example(parts[i], _samples(_within(parts[i], utterance, whole_T), whole_T), []) for i in own])
        heard |= dict(zip(own, module.transcribe(batch.to(module.device)), strict=True))
        silence_s = utterance.duration - sum(part.duration for part in parts)
        told(silence_s + sum(parts[place].duration for place in heard))
    ordered = [heard[place] for place in range(len(parts))]
    starts = [start for start, _ in spans]
    return Hypothesis(
        utterance.id,
        " ".join(one.text for one in ordered if one.text),
        sum(one.score for one in ordered) / max(1, len(ordered)),
        detected=next((one.detected for one in ordered if one.detected), None),
        words=[word.later(start) for one, start in zip(ordered, starts, strict=True) for word in one.words],
        segments=[
            phrase.later(start)
            for one, start, part in zip(ordered, starts, parts, strict=True)
            for phrase in one.segments or ([Word(one.text, 0.0, part.duration, 1.0)] if one.text else [])
        ],
    )


def _within(part: Utterance, utterance: Utterance, whole_T: Tensor | None) -> Utterance:
    """A part as it is to be read: samples that are at hand begin with their utterance."""
    return part if whole_T is None else replace(part, offset=part.offset - utterance.offset)


def batches(module: ASRModule, durations: Sequence[Seconds], batch_s: Seconds) -> Iterator[list[int]]:
    """Places of recordings of like length, the longest first, as many as the encoder can take in ``batch_s``."""
    left = sorted(range(len(durations)), key=durations.__getitem__)
    while left:
        size = max(1, int(batch_s / seen_s(module, durations[left[-1]])))
        own, left = left[-size:], left[:-size]
        yield own


def seen_s(module: ASRModule, duration: Seconds) -> Seconds:
    """Seconds that the encoder works through for a recording of that length: Whisper's window may be longer."""
    encoder = encoder_of(module)
    return WINDOW_S if isinstance(encoder, WhisperEncoder) and encoder.window == "30s" else duration


def too_long(module: ASRModule, options: LongForm) -> Seconds:
    """Recordings of more than so many seconds are taken apart."""
    limit: Seconds | None = encoder_of(module).max_s
    if isinstance(module, Seq2SeqModule) and limit is not None:
        return limit
    return options.chunk_s if limit is None else min(limit, options.chunk_s)


@torch.inference_mode()
def hear_long(
    module: ASRModule, utterance: Utterance, options: LongForm, whole_T: Tensor | None = None, told: Told = _nobody
) -> Hypothesis:
    """What a model hears in a recording that is too long for one pass; ``told`` how far it has come.

    Raises:
        AudioError: it cannot be read.
        ConfigError: the model has neither CTC nor timestamps to take it apart by.
    """
    if options.vad:
        return by_voice(module, utterance, options, whole_T, told)
    if isinstance(module, Seq2SeqModule):
        return whisper_long(module, utterance, whole_T, told)
    if isinstance(module, JointModule) and isinstance(module.decoder, AttentionGreedy | AttentionBeam):
        what = "the attention decoder hears no more than a window"
        raise ConfigError("decoder", what, "vad=true, or decoder=ctc_greedy or ctc_beam, for long recordings")
    assert isinstance(module, CTCModule)
    return ctc_long(module, utterance, options, whole_T, told)


def transcribe_long(module: ASRModule, utterance: Utterance, options: LongForm, told: Told = _nobody) -> Prediction:
    """The transcript of a recording that is too long for one pass; see `hear_long`."""
    return Prediction.of(utterance, hear_long(module, utterance, options, told=told))
