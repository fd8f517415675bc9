"""Where the errors are: by tag and by length, which words for which, and the worst utterances."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ssl_asr.errors import ConfigError
from ssl_asr.metrics.edit import Edits, Operation, align, word_edits
from ssl_asr.metrics.report import Normalizer, Prediction, coloured_diff
from ssl_asr.types import Seconds

_BINS_S: tuple[Seconds, ...] = (2.0, 5.0, 10.0, 20.0, 30.0)
# Keys of a prediction that are no tags but can be grouped by.
_OWN = ("lang", "length")


@dataclass(frozen=True, slots=True)
class Group:
    """The errors of the utterances that share a value."""

    value: str
    utterances: int
    duration: Seconds
    words: Edits


@dataclass(frozen=True, slots=True)
class Confusion:
    """A word written for another, or for none, so many times."""

    operation: Operation
    ref: str
    hyp: str
    count: int


def length_bin(duration: Seconds) -> str:
    """The bin of an utterance's length.

    Example:
        >>> length_bin(1.9), length_bin(2.0), length_bin(31.0)
        ('0-2 s', '2-5 s', '30 s and more')
    """
    low: Seconds = 0.0
    for high in _BINS_S:
        if duration < high:
            return f"{low:g}-{high:g} s"
        low = high
    return f"{low:g} s and more"


def _value(prediction: Prediction, key: str) -> str:
    if key == "length":
        return length_bin(prediction.duration)
    value = prediction.lang if key == "lang" else prediction.tags.get(key)
    return "(none)" if value is None else str(value)


def by_key(predictions: Sequence[Prediction], key: str, normalize: Normalizer) -> list[Group]:
    """Errors by a tag of the manifest, ``lang`` or ``length``; groups in order of their value, lengths in theirs.

    Raises:
        ConfigError: no utterance has the tag.
    """
    known = sorted({tag for prediction in predictions for tag in prediction.tags})
    if key not in _OWN and key not in known:
        raise ConfigError("by", f"no utterance has the tag '{key}'", f"one of {', '.join([*_OWN, *known])}")
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(_value(prediction, key), []).append(prediction)
    lengths = {length_bin(low): place for place, low in enumerate((0.0, *_BINS_S))}
    ordered = sorted(groups.items(), key=lambda item: (lengths.get(item[0], 0) if key == "length" else 0, item[0]))
    return [
        Group(
            value,
            len(rows),
            sum(row.duration for row in rows),
            sum((word_edits(*_texts(row, normalize)) for row in rows), Edits()),
        )
        for value, rows in ordered
    ]


def _texts(prediction: Prediction, normalize: Normalizer) -> tuple[str, str]:
    return normalize(prediction.ref, prediction.lang), normalize(prediction.hyp, prediction.lang)


def confusions(predictions: Sequence[Prediction], normalize: Normalizer, count: int) -> list[Confusion]:
    """The most frequent errors, the most frequent first and equals in order of their words."""
    found: Counter[tuple[Operation, str, str]] = Counter()
    for prediction in predictions:
        ref, hyp = _texts(prediction, normalize)
        found.update(step for step in align(ref.split(), hyp.split()) if step[0] != "match")
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Confusion(*step, times) for step, times in ordered]


def worst(predictions: Sequence[Prediction], normalize: Normalizer, count: int) -> list[Prediction]:
    """The utterances with most word errors, those without any left out."""
    errors = {prediction.id: word_edits(*_texts(prediction, normalize)).errors for prediction in predictions}
    wrong = [prediction for prediction in predictions if errors[prediction.id] > 0]
    return sorted(wrong, key=lambda prediction: (-errors[prediction.id], prediction.id))[:count]


def print_groups(key: str, groups: Sequence[Group], console: Console) -> None:
    """Print errors by a key."""
    table = Table(title=f"WER by {key}", title_justify="left")
    for column in (key, "WER %", "sub", "ins", "del", "words", "utterances", "hours"):
        table.add_column(column, justify="left" if column == key else "right")
    for group in groups:
        words = group.words
        numbers = (words.sub, words.ins, words.dele, words.ref, group.utterances)
        hours = f"{group.duration / 3600:.2f}"
        table.add_row(group.value, f"{100 * words.rate:.2f}", *(f"{n:,}" for n in numbers), hours)
    console.print(table)


def print_confusions(found: Sequence[Confusion], console: Console) -> None:
    """Print the most frequent errors."""
    if not found:
        return
    table = Table(title="Most frequent errors", title_justify="left")
    for column in ("times", "said", "written"):
        table.add_column(column, justify="right" if column == "times" else "left")
    for one in found:
        table.add_row(f"{one.count:,}", one.ref or "[dim](nothing)[/]", one.hyp or "[dim](nothing)[/]")
    console.print(table)


def print_worst(predictions: Sequence[Prediction], normalize: Normalizer, console: Console) -> None:
    """Print utterances with their errors in colour."""
    if not predictions:
        return
    table = Table(title="Worst utterances", title_justify="left")
    table.add_column("id", no_wrap=True)
    table.add_column("errors", justify="right")
    table.add_column("reference against hypothesis")
    for prediction in predictions:
        ref, hyp = _texts(prediction, normalize)
        table.add_row(prediction.id, str(word_edits(ref, hyp).errors), coloured_diff(ref, hyp))
    console.print(table)
