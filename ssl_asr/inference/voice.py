"""Recordings of any length, by voice activity detection."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ssl_asr.data.dataset import collate
from ssl_asr.data.vad import Span, batch_parts
from ssl_asr.decoding.segments import transcript
from ssl_asr.inference.languages import Detected, Encoded, detect, with_languages
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.recognizer import Recognizer, SegmentsCallback
from ssl_asr.inference.recording import ProgressCallback, Recording, no_progress
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Batch, Example, Hypothesis, Seconds, Segment

# A text with fewer characters for a second of its part is decoded again, in pieces: Whisper sometimes ends a part after
# a few words. Slow speech has about 8 characters a second.
_FEWEST_CHARACTERS_PER_S = 2.5
# Shorter parts may hold a single word.
_SHORTEST_AGAIN_S: Seconds = 5.0


# Long recordings ---------------------------------------------------------------------------------------------


def transcribe_by_voice(
    module: Recognizer,
    recording: Recording,
    long_form: LongForm,
    options: TranscribeOptions,
    progress: ProgressCallback = no_progress,
    on_segments: SegmentsCallback | None = None,
) -> Hypothesis:
    """Transcribe the parts with speech in batches of similar length, and join their texts.

    With ``on_segments``, batches have consecutive parts, and the first one has one part, so that the first segments are
    known early. If the language is detected, the parts that it is detected from come first, in batches of their own.
    """
    utterance = recording.utterance
    spans = recording.speech(module.longest_pass_s(long_form.chunk_s))
    if not spans:
        progress(utterance.duration)
        return Hypothesis(utterance.id, "", 0.0, no_speech=True)
    durations = [end - start for start, end in spans]
    silence_s = utterance.duration - sum(durations)
    languages, encoded = part_languages(module, recording, spans, long_form)
    found: dict[int, Hypothesis] = {}
    whole: list[Hypothesis] = []

    def complete_next() -> None:
        """Complete the next parts in order of time, as far as they are transcribed."""
        while len(whole) in found:
            row, span = len(whole), spans[len(whole)]
            lang = _language(recording, row, languages)
            whole.append(_complete(module, recording, span, found[row], lang, options))
            if on_segments is not None:
                on_segments(_joined(utterance.id, whole[-1:], [span]).segments)

    def add(some: dict[int, Hypothesis]) -> None:
        found.update(some)
        progress(silence_s + sum(durations[row] for row in found))
        if on_segments is not None:
            complete_next()

    for one in encoded:
        add(dict(zip(one.rows, module.transcribe(one.batch, one.out, options), strict=True)))
    seconds = {row: durations[row] for row in range(len(spans)) if row not in found}
    for some in _transcribed(
        module,
        seconds,
        lambda row: _part(recording, spans, row, languages),
        long_form.batch_s,
        options,
        in_order=on_segments is not None,
    ):
        add(some)
    complete_next()
    joined = _joined(utterance.id, whole, spans)
    return with_languages(joined, languages) if languages else joined


def _is_complete(text: str, seconds: Seconds) -> bool:
    return seconds < _SHORTEST_AGAIN_S or len(text) >= _FEWEST_CHARACTERS_PER_S * seconds


def _complete(
    module: Recognizer,
    recording: Recording,
    span: Span,
    found: Hypothesis,
    lang: str | None,
    options: TranscribeOptions,
) -> Hypothesis:
    """The hypothesis of a part. If its text is too short for its speech, and in pieces it is not, that of the pieces.

    CTC does not end early, so its hypotheses stay as they are.
    """
    start, end = span
    if module.long_form == "windows" or _is_complete(found.text, end - start):
        return found
    spans = recording.speech((end - start) / 2, within=span)
    if not spans:
        return found
    pieces = [recording.part(first, last - first, lang=lang) for first, last in spans]
    hypotheses = module.transcribe(collate(pieces).to(module.device), options=options)
    joined = _joined(found.id, hypotheses, [(first - start, last - start) for first, last in spans])
    return joined if _is_complete(joined.text, sum(last - first for first, last in spans)) else found


def _language(recording: Recording, row: int, languages: Sequence[Detected]) -> str | None:
    """Language of a part: that of the recording, or else the detected one."""
    lang = recording.utterance.lang
    return lang if lang is not None or not languages else languages[row].lang


def _part(recording: Recording, spans: Sequence[Span], row: int, languages: Sequence[Detected] = ()) -> Example:
    """A part of a recording, with its language."""
    start, end = spans[row]
    lang = _language(recording, row, languages)
    return recording.part(start, end - start, id=f"{recording.utterance.id}#{row}", lang=lang)


def part_languages(
    module: Recognizer, recording: Recording, spans: Sequence[Span], long_form: LongForm
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


def _transcribed(
    module: Recognizer,
    seconds: Mapping[int, Seconds],
    part: Callable[[int], Example],
    batch_s: Seconds | None,
    options: TranscribeOptions,
    *,
    in_order: bool = False,
) -> Iterator[dict[int, Hypothesis]]:
    """Hypotheses of parts by number, one batch of similar lengths at a time.

    Args:
        module: The model.
        seconds: Length of each part.
        part: Reads a part. Called when its batch is transcribed.
        batch_s: Computed seconds in a batch. None for the default of the encoder.
        options: What to return besides text.
        in_order: Batches have consecutive parts, in place of parts of similar lengths.
    """
    numbers = list(seconds)
    for group in batches(module.speech_encoder, list(seconds.values()), batch_s, in_order=in_order):
        rows = [numbers[place] for place in group]
        hypotheses = module.transcribe(collate([part(row) for row in rows]).to(module.device), options=options)
        yield dict(zip(rows, hypotheses, strict=True))


def batches(
    encoder: SpeechEncoder, durations: Sequence[Seconds], batch_s: Seconds | None, *, in_order: bool = False
) -> Iterator[list[int]]:
    """Indices of recordings of similar length, longest first, with up to ``batch_s`` computed seconds in a batch.

    With ``in_order``, a batch has consecutive recordings of any length. The first batch has one recording, and each
    further batch twice as many as the one before, up to ``batch_s``.
    """
    if in_order and durations:
        most = most_in_batch(encoder, max(durations), batch_s)
        # On one CPU core, Whisper tiny sent the first text of two minutes after 4 s in place of 10 s. Alone on the
        # server, the whole took 14 s in place of 10 s. Growth by four was as slow, and its second text came later.
        first, size = 0, 1
        while first < len(durations):
            yield list(range(first, min(first + size, len(durations))))
            first, size = first + size, min(2 * size, most)
        return
    remaining = sorted(range(len(durations)), key=durations.__getitem__)
    while remaining:
        size = most_in_batch(encoder, durations[remaining[-1]], batch_s)
        batch, remaining = remaining[-size:], remaining[:-size]
        yield batch


def most_in_batch(encoder: SpeechEncoder, longest_s: Seconds, batch_s: Seconds | None) -> int:
    """Number of recordings in a batch whose longest one has ``longest_s`` seconds, at least 1."""
    computed_s = float(encoder.encoded_s(np.array([longest_s]))[0])
    return max(1, int(encoder.budget_s(batch_s) / computed_s))


# Recordings that fit into one pass ---------------------------------------------------------------------------


def transcribe_short(
    module: Recognizer,
    batch: Batch,
    long_form: LongForm,
    options: TranscribeOptions,
    out: EncoderOutput | None = None,
) -> list[Hypothesis]:
    """Transcribe recordings that fit into one pass: whole, only if they have speech, or only their speech.

    Args:
        module: The model.
        batch: Recordings on the device of the model.
        long_form: ``vad`` chooses what is transcribed.
        options: What to return besides text.
        out: The encoder's output for the batch if it is already computed.
    """
    if long_form.vad is False or (long_form.vad is None and not long_form.check_short):
        return module.transcribe(batch, out, options)
    lengths_s = [samples / SAMPLE_RATE for samples in batch.lengths_B.tolist()]
    longest_s = module.longest_pass_s(long_form.chunk_s)
    spans = batch_parts(batch.waveform_BT, batch.lengths_B, longest_s=longest_s)
    if long_form.vad is None:
        spans = [[(0.0, length)] if own else [] for own, length in zip(spans, lengths_s, strict=True)]
        if all(spans):
            return module.transcribe(batch, out, options)
    parts = [(row, span) for row, own in enumerate(spans) for span in own]
    found: dict[int, Hypothesis] = {}
    seconds = {place: end - start for place, (_, (start, end)) in enumerate(parts)}
    for some in _transcribed(module, seconds, lambda place: _cut(batch, *parts[place]), long_form.batch_s, options):
        found |= some
    places_of = {row: [place for place, part in enumerate(parts) if part[0] == row] for row in range(len(batch))}
    return [
        _of_parts(utterance.id, [found[place] for place in places_of[row]], spans[row])
        for row, utterance in enumerate(batch.utterances)
    ]


def _cut(batch: Batch, row: int, span: Span) -> Example:
    """A part of one recording of a batch."""
    utterance, (start, end) = batch.utterances[row], span
    samples_T = batch.waveform_BT[row, : int(batch.lengths_B[row])]
    part = replace(utterance, offset=utterance.offset + start, duration=end - start)
    return Example(part, samples_T[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)], [])


def _of_parts(utterance_id: str, hypotheses: Sequence[Hypothesis], spans: Sequence[Span]) -> Hypothesis:
    """The hypothesis of a recording from those of its parts."""
    if not spans:
        return Hypothesis(utterance_id, "", 0.0, no_speech=True)
    if len(spans) > 1:
        return _joined(utterance_id, hypotheses, spans)
    [only], [(start, _)] = hypotheses, spans
    words, segments = [word.later(start) for word in only.words], [one.later(start) for one in only.segments]
    return replace(only, words=words, segments=segments)
