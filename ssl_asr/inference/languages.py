"""The language of a long recording, from several parts of its speech.

parts          |====|  |=====|  |===|   |====|  |=====|  |====|
probed         x              x              x              x          up to 5, spread over the speech
probabilities  averaged over the probed parts, weighted by their lengths; the largest mean wins
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ssl_asr.data.dataset import collate
from ssl_asr.data.vad import Span
from ssl_asr.inference.recognizer import Recognizer
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.types import Batch, Example, Hypothesis, Seconds

# Parts of a recording, or of a stretch of it, from which its language is detected.
_MAX_PROBES = 5


@dataclass(frozen=True, slots=True)
class Detected:
    """The language of a part, its mean probability over the probed parts, and the length of the part."""

    lang: str
    probability: float
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Encoded:
    """Parts that are already encoded: indices of the parts, their batch, and the encoder's output."""

    rows: list[int]
    batch: Batch
    out: EncoderOutput

    def with_language(self, languages: Sequence[Detected | None]) -> "Encoded":
        """The same parts. Utterances without a language get the detected one."""
        found = [languages[row] for row in self.rows]
        utterances = [
            utterance if utterance.lang is not None or one is None else replace(utterance, lang=one.lang)
            for utterance, one in zip(self.batch.utterances, found, strict=True)
        ]
        return replace(self, batch=replace(self.batch, utterances=utterances))


def detect(
    module: Recognizer,
    spans: Sequence[Span],
    *,
    part: Callable[[int], Example],
    batches: Callable[[Sequence[Seconds]], Sequence[list[int]]],
    every_s: Seconds | None,
) -> tuple[list[Detected], list[Encoded]]:
    """The language of each part, and the parts that were encoded to detect it.

    Args:
        module: A model that detects languages.
        spans: Start and end of each part, in order.
        part: Reads a part by its index.
        batches: Groups parts, given their lengths in seconds; see `ssl_asr.inference.voice.batches`.
        every_s: Length of the stretches whose language is detected separately. None for one language.
    """
    languages: dict[int, Detected] = {}
    encoded: list[Encoded] = []
    for rows in _stretches(spans, every_s):
        means: dict[str, float] = {}
        seconds = 0.0
        probes = spread(rows, _MAX_PROBES)
        for group in batches([spans[row][1] - spans[row][0] for row in probes]):
            own = [probes[place] for place in group]
            batch = collate([part(row) for row in own]).to(module.device)
            out = module.encode(batch)
            encoded.append(Encoded(own, batch, out))
            for row, probabilities in zip(own, module.language_probabilities(out), strict=True):
                length = spans[row][1] - spans[row][0]
                seconds += length
                for lang, probability in probabilities.items():
                    means[lang] = means.get(lang, 0.0) + length * probability
        lang = max(means, key=means.__getitem__)
        languages |= {row: Detected(lang, means[lang] / seconds, spans[row][1] - spans[row][0]) for row in rows}
    ordered = [languages[row] for row in range(len(spans))]
    return ordered, [one.with_language(ordered) for one in encoded]


def _stretches(spans: Sequence[Span], every_s: Seconds | None) -> list[list[int]]:
    """Indices of the parts that start in each stretch of ``every_s`` seconds."""
    stretches: dict[int, list[int]] = {}
    for row, (start, _) in enumerate(spans):
        stretches.setdefault(0 if every_s is None else int(start // every_s), []).append(row)
    return list(stretches.values())


def spread(rows: Sequence[int], count: int) -> list[int]:
    """At most ``count`` items, evenly spaced.

    Example:
        >>> spread(range(10), 3)
        [1, 5, 8]
    """
    if len(rows) <= count:
        return list(rows)
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]


def with_languages(hypothesis: Hypothesis, languages: Sequence[Detected]) -> Hypothesis:
    """The hypothesis with the language of most of the speech, and its probability."""
    seconds: dict[str, Seconds] = {}
    for one in languages:
        seconds[one.lang] = seconds.get(one.lang, 0.0) + one.seconds
    lang = max(seconds, key=seconds.__getitem__)
    probability = sum(one.probability * one.seconds for one in languages if one.lang == lang) / seconds[lang]
    return replace(hypothesis, detected=lang, detected_probability=probability)
