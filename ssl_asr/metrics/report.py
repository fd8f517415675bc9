"""What an evaluation leaves: predictions.jsonl, and scores that can be recomputed from it to the digit."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.edit import Edits, align, char_edits, word_edits
from ssl_asr.textfiles import written_whole
from ssl_asr.types import Alternative, Hypothesis, Segment, Utterance, Word

Normalizer = Callable[[str, str | None], str]

BOOTSTRAP_SAMPLES = 1000
# Fields of a prediction that are written only where they hold something.
_OCCASIONAL = ("words", "alternatives", "detected", "segments")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One utterance's reference and hypothesis, both as they came, before any normaliser."""

    id: str
    ref: str
    hyp: str
    score: float
    duration: float
    audio_filepath: str
    offset: float = 0.0
    lang: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    words: list[Word] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    detected: str | None = None
    segments: list[Segment] = field(default_factory=list)

    @classmethod
    def of(cls, utterance: Utterance, hypothesis: Hypothesis) -> "Prediction":
        """What was heard of an utterance, beside what was said."""
        assert utterance.id == hypothesis.id
        return cls(
            id=utterance.id,
            ref=utterance.text,
            hyp=hypothesis.text,
            score=hypothesis.score,
            duration=utterance.duration,
            audio_filepath=utterance.audio_filepath,
            offset=utterance.offset,
            lang=utterance.lang,
            tags=utterance.tags,
            words=hypothesis.words,
            alternatives=hypothesis.alternatives,
            detected=hypothesis.detected,
            segments=hypothesis.segments,
        )

    def record(self) -> dict[str, Any]:
        """Plain data; words, alternatives and the language detected only where there are any."""
        row = asdict(self) | {key: [word.record() for word in getattr(self, key)] for key in ("words", "segments")}
        return {key: value for key, value in row.items() if value or key not in _OCCASIONAL}

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Prediction":
        """The prediction that `record` wrote; TypeError where it did not."""
        words = [Word.from_record(word) for word in row.get("words", [])]
        alternatives = [Alternative(**other) for other in row.get("alternatives", [])]
        segments = [Segment.from_record(segment) for segment in row.get("segments", [])]
        return cls(**(row | {"words": words, "alternatives": alternatives, "segments": segments}))


@dataclass(frozen=True, slots=True)
class Score:
    """Error rates of a set of predictions under one named normaliser.

    ``wer_low`` and ``wer_high`` bound the WER's 95 % interval, from 1,000 bootstrap samples of utterances.
    """

    normalizer: str
    words: Edits
    chars: Edits
    wer_low: float
    wer_high: float
    sentence_errors: int
    utterances: int

    @property
    def wer(self) -> float:
        """Word error rate, a ratio."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate, a ratio."""
        return self.chars.rate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return {"wer": self.wer, "cer": self.cer, **asdict(self)}


def bootstrap_interval(errors_N: NDArray[np.int64], refs_N: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of ``sum(errors) / sum(refs)`` when utterances are drawn anew (Bisani and Ney, 2004).

    Samples without a single reference token are left out; with none left, both bounds are NaN.
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


def score_predictions(predictions: Sequence[Prediction], normalizer: str, normalize: Normalizer) -> Score:
    """Score predictions after ``normalize``, in order of id so that the interval does not depend on batches."""
    words, chars = [], []
    for prediction in sorted(predictions, key=lambda p: p.id):
        ref, hyp = (normalize(text, prediction.lang) for text in (prediction.ref, prediction.hyp))
        words.append(word_edits(ref, hyp))
        chars.append(char_edits(ref, hyp))
    errors_N = np.array([edits.errors for edits in words], dtype=np.int64)
    refs_N = np.array([edits.ref for edits in words], dtype=np.int64)
    low, high = bootstrap_interval(errors_N, refs_N) if predictions else (float("nan"), float("nan"))
    return Score(
        normalizer=normalizer,
        words=sum(words, Edits()),
        chars=sum(chars, Edits()),
        wer_low=low,
        wer_high=high,
        sentence_errors=int((errors_N > 0).sum()),
        utterances=len(predictions),
    )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line, sorted by id, whole or not at all."""
    rows = sorted(predictions, key=lambda prediction: prediction.id)
    with written_whole(path) as file:
        file.writelines(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in rows)


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a file that `write_predictions` wrote.

    Raises:
        ManifestError: a line is not such a prediction.
    """
    predictions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            predictions.append(Prediction.from_record(json.loads(line)))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ManifestError(f"{path}:{number}", f"is no prediction: {error}") from None
    return predictions


def colored_diff(ref: str, hyp: str) -> Text:
    """The alignment in one line: substitutions yellow, insertions green, deletions red."""
    text = Text()
    for operation, old, new in align(ref.split(), hyp.split()):
        if operation == "match":
            text.append(old)
        elif operation == "sub":
            text.append(f"[{old}→{new}]", style="yellow")
        elif operation == "ins":
            text.append(f"+{new}", style="green")
        else:
            text.append(f"-{old}", style="red")
        text.append(" ")
    return text


def plain_diff(ref: str, hyp: str) -> str:
    """The same alignment without colour, for logs and tables."""
    return colored_diff(ref, hyp).plain.strip()


def print_samples(predictions: Sequence[Prediction], normalize: Normalizer, console: Console, count: int = 4) -> None:
    """Print a few aligned utterances, worst and best alike, so that trouble shows to the eye."""
    if count <= 0 or not predictions:
        return
    table = Table(show_header=True, title_justify="left", title="Samples")
    table.add_column("id", no_wrap=True)
    table.add_column("reference against hypothesis")
    step = max(1, len(predictions) // count)
    for prediction in sorted(predictions, key=lambda p: p.id)[::step][:count]:
        ref, hyp = (normalize(text, prediction.lang) for text in (prediction.ref, prediction.hyp))
        table.add_row(prediction.id, colored_diff(ref, hyp))
    console.print(table)


def print_scores(title: str, scores: Sequence[Score], console: Console) -> None:
    """Print error rates in percent, with their parts."""
    table = Table(title=title, title_justify="left")
    for column in (
        "normaliser",
        "WER %",
        "95 % interval",
        "sub",
        "ins",
        "del",
        "words",
        "CER %",
        "utterances wrong",
    ):
        table.add_column(column, justify="left" if column == "normaliser" else "right")
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
