"""Predictions and their scores: reading and writing predictions.jsonl, error rates, and tables.

Scores are computed from predictions alone, so `ssl-asr evaluate predictions=...` reproduces them exactly.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from ssl_asr.console import TitledTable
from ssl_asr.errors import ManifestError
from ssl_asr.metrics.edit import Edits, Unit, align, char_edits, closest, wer_unit, word_edits, word_units
from ssl_asr.textfiles import from_json, shown, to_json, written_whole
from ssl_asr.types import Alternative, Hypothesis, Normalizer, Segment, Utterance, Word

BOOTSTRAP_SAMPLES = 1000
# Fields that are left out of a record if they are empty.
_OPTIONAL = ("references", "task", "words", "alternatives", "detected", "detected_probability", "segments", "no_speech")
# Types of the fields that scores and reports read.
_TYPES = dict.fromkeys(("id", "ref", "hyp", "audio_filepath"), str) | {
    "duration": int | float,
    "offset": int | float,
    "channel": int | None,
    "lang": str | None,
    "task": str | None,
}
# Characters of an alignment in the table of samples. A loop of a decoder is longer.
_MOST_SHOWN = 400
_STYLES = {"sub": "yellow", "ins": "green", "del": "red"}
# Legible on light and on dark pages.
_HTML_COLORS = {"yellow": "#b8860b", "green": "#2e8b57", "red": "#d9534f"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Reference and hypothesis of one utterance, before any normalizer.

    Attributes:
        id: Utterance id.
        ref: Reference text.
        hyp: Hypothesis text.
        score: Score of the hypothesis, see `Hypothesis`.
        duration: Seconds.
        audio_filepath: Path of the audio file. A relative path starts at the working directory of the command that
            wrote it.
        offset: Start of the utterance in the file, in seconds.
        channel: Index of the channel that was read, from 0. None if the channels were mixed.
        lang: Language code from the manifest.
        task: ``transcribe`` or ``translate`` from the manifest. None if it names none.
        tags: Keys of the manifest that the framework does not use itself.
        references: Further references.
        words, alternatives, detected, segments, detected_probability, no_speech: See `Hypothesis`.
    """

    id: str
    ref: str
    hyp: str
    score: float
    duration: float
    audio_filepath: str
    offset: float = 0.0
    channel: int | None = None
    lang: str | None = None
    task: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    detected: str | None = None
    segments: list[Segment] = field(default_factory=list)
    detected_probability: float | None = None
    no_speech: bool = False

    @classmethod
    def of(cls, utterance: Utterance, hypothesis: Hypothesis) -> "Prediction":
        """The reference of an utterance with its hypothesis."""
        assert utterance.id == hypothesis.id
        return cls(
            id=utterance.id,
            ref=utterance.text,
            hyp=hypothesis.text,
            score=hypothesis.score,
            duration=utterance.duration,
            audio_filepath=utterance.audio_filepath,
            offset=utterance.offset,
            channel=utterance.channel,
            lang=utterance.lang,
            task=utterance.task,
            tags=utterance.tags,
            references=list(utterance.references),
            words=hypothesis.words,
            alternatives=hypothesis.alternatives,
            detected=hypothesis.detected,
            segments=hypothesis.segments,
            detected_probability=hypothesis.detected_probability,
            no_speech=hypothesis.no_speech,
        )

    def utterance(self) -> Utterance:
        """The utterance, without its tags."""
        return Utterance(
            id=self.id,
            audio_filepath=self.audio_filepath,
            duration=self.duration,
            text=self.ref,
            references=tuple(self.references),
            offset=self.offset,
            channel=self.channel,
            lang=self.lang,
            task=self.task,
        )

    @property
    def refs(self) -> list[str]:
        """All references, ``ref`` first."""
        return [self.ref, *self.references]

    def pair(self, normalize: Normalizer) -> tuple[str, str]:
        """The normalized reference with the fewest word errors, and the normalized hypothesis."""
        refs, hyp = self._normalized(normalize)
        return closest(refs, hyp, word_edits), hyp

    def pairs(self, normalize: Normalizer) -> tuple[tuple[str, str], tuple[str, str]]:
        """The pair for the WER, and the pair for the CER, for which another reference may be the closest one."""
        refs, hyp = self._normalized(normalize)
        return (closest(refs, hyp, word_edits), hyp), (closest(refs, hyp, char_edits), hyp)

    def _normalized(self, normalize: Normalizer) -> tuple[list[str], str]:
        return [normalize(ref, self.lang) for ref in self.refs], normalize(self.hyp, self.lang)

    def record(self) -> dict[str, Any]:
        """Plain data for JSON. Optional fields are left out if they are empty: references, task, words and others."""
        row = asdict(self) | {key: [part.record() for part in getattr(self, key)] for key in ("words", "segments")}
        return {key: value for key, value in row.items() if value or key not in _OPTIONAL}

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Prediction":
        """Prediction from the result of `record`.

        Raises:
            TypeError: A key is missing or unknown, or has a value of another type.
        """
        if not isinstance(row, dict):
            raise TypeError("it is not a mapping")
        if missing := [one.name for one in fields(cls) if one.name not in row and not _has_default(one)]:
            raise TypeError(f"it has no '{missing[0]}'")
        if unknown := row.keys() - {one.name for one in fields(cls)}:
            raise TypeError(f"it has the unknown key '{min(unknown)}'")
        wrong = next((name for name, kind in _TYPES.items() if name in row and not isinstance(row[name], kind)), None)
        if wrong is not None:
            raise TypeError(f"'{wrong}' is {shown(row[wrong])}")
        references = row.get("references", [])
        if not isinstance(references, list) or not all(isinstance(ref, str) for ref in references):
            raise TypeError(f"'references' is {shown(references)}")
        words = [Word.from_record(word) for word in row.get("words", [])]
        alternatives = [Alternative(**other) for other in row.get("alternatives", [])]
        segments = [Segment.from_record(segment) for segment in row.get("segments", [])]
        # JSON has null for a score that is not finite.
        score = {"score": float("nan")} if row.get("score", 0.0) is None else {}
        return cls(**(row | score | {"words": words, "alternatives": alternatives, "segments": segments}))


def _has_default(one: "Field[Any]") -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object per line, sorted by id. The file gets its name after the last line is written."""
    rows = sorted(predictions, key=lambda prediction: prediction.id)
    with written_whole(path) as file:
        file.writelines(to_json(row.record()) + "\n" for row in rows)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file written by `write_predictions`.

    Raises:
        ManifestError: A line is not a prediction, or two lines are of one recording.
    """
    predictions: list[Prediction] = []
    first: dict[tuple[Any, ...], int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = from_json(line, where, error=ManifestError, remedy="give a file that evaluate or transcribe wrote")
        if isinstance(row, dict) and "audio_filepath" in row and not {"hyp", "ref", "score"} & set(row):
            remedy = f"to transcribe and score it, write manifest={path} model=…"
            raise ManifestError(where, "is a line of a manifest, not a prediction", remedy)
        try:
            predictions.append(Prediction.from_record(row))
        except (TypeError, AttributeError) as error:
            remedy = "give a file that evaluate or transcribe wrote"
            raise ManifestError(where, f"is not a prediction: {error}", remedy) from None
        new = predictions[-1]
        key = new.id, new.audio_filepath, new.offset, new.duration, new.channel, new.lang, new.task
        if first.setdefault(key, number) != number:
            what = f"'{new.id}' is the recording of line {first[key]}, and would be scored twice"
            raise ManifestError(where, what, "remove one of the lines")
    return predictions


@dataclass(frozen=True, slots=True)
class Score:
    """Error rates of a set of predictions under one normalizer.

    Attributes:
        normalizer: Name of the normalizer.
        wer_unit: What the WER counts: ``words``, ``characters`` or ``mixed``; see `ssl_asr.metrics.edit`.
        words, chars: Edits of these units, and of characters.
        wer_low, wer_high: Bounds of the 95 % bootstrap interval of the WER, as ratios.
        sentence_errors: Number of utterances with at least one word error.
        utterances: Number of utterances.
    """

    normalizer: str
    wer_unit: Unit
    words: Edits
    chars: Edits
    wer_low: float
    wer_high: float
    sentence_errors: int
    utterances: int

    @property
    def wer(self) -> float:
        """Word error rate, as a ratio."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate, as a ratio."""
        return self.chars.rate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        counts = {"words": self.words.record(), "chars": self.chars.record()}
        return {"wer": self.wer, "cer": self.cer, **asdict(self), **counts}


def score_predictions(predictions: Sequence[Prediction], normalizer: str, normalize: Normalizer) -> Score:
    """Score normalized predictions.

    Predictions are sorted by id first, so the bootstrap interval does not depend on the order of batches.

    Args:
        predictions: Predictions of a split.
        normalizer: Name of the normalizer.
        normalize: The normalizer.
    """
    both = [one.pairs(normalize) for one in sorted(predictions, key=lambda p: p.id)]
    pairs = [pair for pair, _ in both]
    words = [word_edits(*pair) for pair in pairs]
    chars = [char_edits(*pair) for _, pair in both]
    errors_N = np.array([edits.errors for edits in words], dtype=np.int64)
    refs_N = np.array([edits.ref for edits in words], dtype=np.int64)
    low, high = bootstrap_interval(errors_N, refs_N) if predictions else (float("nan"), float("nan"))
    return Score(
        normalizer=normalizer,
        wer_unit=wer_unit(pairs),
        words=sum(words, Edits()),
        chars=sum(chars, Edits()),
        wer_low=low,
        wer_high=high,
        sentence_errors=int((errors_N > 0).sum()),
        utterances=len(predictions),
    )


def bootstrap_interval(errors_N: NDArray[np.int64], refs_N: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % interval of ``sum(errors) / sum(refs)``, by bootstrap over utterances (Bisani and Ney, 2004).

    Samples without a reference token are left out. If no sample is left, both bounds are NaN.

    Args:
        errors_N: Number of errors of each utterance.
        refs_N: Number of reference tokens of each utterance.
        seed: Seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn = rng.integers(0, len(errors_N), len(errors_N))
        if refs_N[drawn].sum() > 0:
            rates.append(errors_N[drawn].sum() / refs_N[drawn].sum())
    if not rates:
        return float("nan"), float("nan")
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def colored_diff(ref: str, hyp: str) -> Text:
    """Alignment of the units of the WER in one line: substitutions in yellow, insertions in green, deletions in red."""
    text = Text()
    for operation, old, new in align(*word_units(ref, hyp)):
        shown = {"match": old, "sub": f"[{old}→{new}]", "ins": f"+{new}", "del": f"-{old}"}[operation]
        text.append(shown, style=_STYLES.get(operation))
        text.append(" ")
    return text


def html_diff(ref: str, hyp: str) -> str:
    """The alignment of `colored_diff` as HTML.

    Example:
        >>> html_diff("a b", "a c")
        'a <span style="color:#b8860b">[b→c]</span>'
    """
    text = colored_diff(ref, hyp)
    parts, at = [], 0
    for span in text.spans:
        parts.append(html.escape(text.plain[at : span.start]))
        parts.append(f'<span style="color:{_HTML_COLORS[str(span.style)]}">')
        parts.append(f"{html.escape(text.plain[span.start : span.end])}</span>")
        at = span.end
    return "".join([*parts, html.escape(text.plain[at:])]).strip()


def plain_diff(ref: str, hyp: str) -> str:
    """The alignment of `colored_diff` without color.

    Example:
        >>> plain_diff("a b c", "a x c d")
        'a [b→x] c +d'
    """
    return colored_diff(ref, hyp).plain.strip()


def print_samples(predictions: Sequence[Prediction], normalize: Normalizer, console: Console, count: int = 4) -> None:
    """Print the alignment of ``count`` utterances, evenly spaced in order of id. Long ones are cut with an ellipsis."""
    if count <= 0 or not predictions:
        return
    table = TitledTable("Samples")
    table.add_column("id", no_wrap=True)
    table.add_column("alignment of reference and hypothesis")
    step = max(1, len(predictions) // count)
    for prediction in sorted(predictions, key=lambda p: p.id)[::step][:count]:
        alignment = colored_diff(*prediction.pair(normalize))
        alignment.truncate(_MOST_SHOWN, overflow="ellipsis")
        table.add_row(prediction.id, alignment)
    console.print(table)


def unit_title(scores: Sequence[Score]) -> str:
    """Heading of a column with the number of reference units."""
    units = {score.wer_unit for score in scores}
    return "words and characters" if len(units) > 1 or units == {"mixed"} else units.pop()


def print_scores(title: str, scores: Sequence[Score], console: Console) -> None:
    """Print error rates in percent, a row for each normalizer. The WER's unit heads the column of its count."""
    table = TitledTable(title)
    numbers = ("WER %", "95 % interval", "sub", "ins", "del", unit_title(scores), "CER %", "utterances wrong")
    for column in ("normalizer", *numbers):
        is_name = column == "normalizer"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for score in scores:
        words = score.words
        table.add_row(
            score.normalizer,
            f"{100 * score.wer:.2f}",
            f"{100 * score.wer_low:.2f} - {100 * score.wer_high:.2f}",
            f"{words.sub:,}",
            f"{words.ins:,}",
            f"{words.dele:,}",
            f"{words.ref:,}",
            f"{100 * score.cer:.2f}",
            f"{score.sentence_errors:,} of {score.utterances:,}",
        )
    console.print(table)
