"""Recordings that fit into one pass, by voice activity detection."""

from collections.abc import Sequence
from dataclasses import replace

from ssl_asr.data.dataset import collate
from ssl_asr.data.vad import Span, batch_parts
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.long_recordings import _joined, batches
from ssl_asr.training.module import ASRModule, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Batch, Example, Hypothesis


def transcribe_short(
    module: ASRModule, batch: Batch, long_form: LongForm, options: TranscribeOptions
) -> list[Hypothesis]:
    """Transcribe recordings that fit into one pass: whole, only if they have speech, or only their speech.

    Args:
        module: The model.
        batch: Recordings on the device of the model.
        long_form: ``vad`` chooses what is transcribed.
        options: What to return besides text.
    """
    if long_form.vad is False or (long_form.vad is None and not long_form.check_short):
        return module.transcribe(batch, options=options)
    lengths_s = [samples / SAMPLE_RATE for samples in batch.lengths_B.tolist()]
    longest_s = module.longest_pass_s(long_form.chunk_s)
    spans = batch_parts(batch.waveform_BT, batch.lengths_B, longest_s=longest_s)
    if long_form.vad is None:
        spans = [[(0.0, length)] if own else [] for own, length in zip(spans, lengths_s, strict=True)]
        if all(spans):
            return module.transcribe(batch, options=options)
    parts = [(row, span) for row, own in enumerate(spans) for span in own]
    found: dict[int, Hypothesis] = {}
    for places in batches(module.speech_encoder, [end - start for _, (start, end) in parts], long_form.batch_s):
        examples = [_cut(batch, *parts[place]) for place in places]
        hypotheses = module.transcribe(collate(examples).to(module.device), options=options)
        found |= dict(zip(places, hypotheses, strict=True))
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
