"""Where the errors are: by tag or length, by word pair, and by utterance."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich.console import Console

from ssl_asr.console import TitledTable
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.edit import Edits, Operation, Unit, align, wer_unit, word_edits, word_units
from ssl_asr.metrics.report import Prediction, colored_diff
from ssl_asr.types import Normalizer, Seconds

# Upper edges of the length bins. The last bin has no upper edge.
_BIN_EDGES_S: tuple[Seconds, ...] = (2.0, 5.0, 10.0, 20.0, 30.0)
# Keys that are fields of a prediction, not tags.
_FIELD_KEYS = ("lang", "length")


class Tagged(Protocol):
    """An utterance or a prediction."""

    @property
    def tags(self) -> dict[str, Any]:
        """Keys of the manifest that the framework does not use itself."""


@dataclass(frozen=True, slots=True)
class Group:
    """Word errors of the utterances that share a value of a key.

    Attributes:
        value: The shared value.
        utterances: Number of utterances.
        duration: Seconds of speech.
        words: Errors of the units of the WER.
        wer_unit: What the WER counts; see `ssl_asr.metrics.edit`.
    """

    value: str
    utterances: int
    duration: Seconds
    words: Edits
    wer_unit: Unit


@dataclass(frozen=True, slots=True)
class Confusion:
    """A frequent word error.

    Attributes:
        operation: ``sub``, ``ins`` or ``del``.
        ref: Reference word. Empty for an insertion.
        hyp: Hypothesis word. Empty for a deletion.
        count: Number of occurrences.
    """

    operation: Operation
    ref: str
    hyp: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Breakdown:
    """Where the errors of a split are.

    Attributes:
        groups: Word errors by value, for each key to group by.
        confusions: Most frequent word errors.
        worst: Utterances with the most word errors.
    """

    groups: dict[str, list[Group]]
    confusions: list[Confusion]
    worst: list[Prediction]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return {
            "by": {
                key: [asdict(one) | {"words": one.words.record(), "wer": one.words.rate} for one in groups]
                for key, groups in self.groups.items()
            },
            "confusions": [asdict(confusion) for confusion in self.confusions],
            "worst": [prediction.id for prediction in self.worst],
        }


def break_down(
    predictions: Sequence[Prediction],
    normalize: Normalizer,
    *,
    by: Sequence[str],
    confusions: int,
    worst: int,
    language_tag: Callable[[str], str] = str,
) -> Breakdown:
    """Find where the errors are.

    Args:
        predictions: Utterances of a split.
        normalize: Text normalizer.
        by: Keys to group errors by.
        confusions: Number of most frequent errors.
        worst: Number of worst utterances.
        language_tag: The standard tag of a language, to group errors by ``lang``. Default: `str`.

    Raises:
        ConfigError: No utterance has one of the tags in ``by``.
    """
    return Breakdown(
        groups={key: by_key(predictions, key, normalize, language_tag) for key in by},
        confusions=frequent_errors(predictions, normalize, confusions),
        worst=worst_utterances(predictions, normalize, worst),
    )


def length_bin(duration: Seconds) -> str:
    """Name of the length bin of an utterance.

    Example:
        >>> length_bin(1.9), length_bin(2.0), length_bin(31.0)
        ('0-2 s', '2-5 s', '30 s and more')
    """
    low: Seconds = 0.0
    for high in _BIN_EDGES_S:
        if duration < high:
            return f"{low:g}-{high:g} s"
        low = high
    return f"{low:g} s and more"


def by_key(
    predictions: Sequence[Prediction], key: str, normalize: Normalizer, language_tag: Callable[[str], str] = str
) -> list[Group]:
    """Word errors grouped by a key.

    Args:
        predictions: Utterances of a split.
        key: A tag of the manifest, ``lang`` or ``length``.
        normalize: Text normalizer.
        language_tag: The standard tag of a language. Default: `str` (languages are grouped as they are written).

    Returns:
        Groups sorted by value. Length bins are sorted by length.

    Raises:
        ConfigError: No utterance has the tag.
    """
    return [
        Group(
            value=value,
            utterances=len(rows),
            duration=sum(row.duration for row in rows),
            words=sum((word_edits(*pair) for pair in pairs), Edits()),
            wer_unit=wer_unit(pairs),
        )
        for value, rows in members_of(predictions, key, language_tag).items()
        for pairs in [[row.pair(normalize) for row in rows]]
    ]


def check_keys(by: Sequence[str], utterances: Iterable[Tagged]) -> None:
    """Check keys to group errors by, before anything is transcribed.

    Raises:
        ConfigError: No utterance has one of the tags.
    """
    wanted = [key for key in by if key not in _FIELD_KEYS]
    tags = sorted({tag for utterance in utterances for tag in utterance.tags}) if wanted else []
    for key in wanted:
        if key not in tags:
            known = ", ".join([*_FIELD_KEYS, *tags])
            raise ConfigError("by", f"no utterance has the tag '{key}'", f"use one of {known}")


def members_of(
    predictions: Sequence[Prediction], key: str, language_tag: Callable[[str], str] = str
) -> dict[str, list[Prediction]]:
    """The utterances with each value of a key, sorted by value. See `by_key`.

    Raises:
        ConfigError: No utterance has the tag.
    """
    check_keys([key], predictions)
    members: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        members.setdefault(_value(prediction, key, language_tag), []).append(prediction)
    rank = {length_bin(low): place for place, low in enumerate((0.0, *_BIN_EDGES_S))} if key == "length" else {}
    return dict(sorted(members.items(), key=lambda item: (rank.get(item[0], 0), item[0])))


def _value(prediction: Prediction, key: str, language_tag: Callable[[str], str]) -> str:
    if key == "length":
        return length_bin(prediction.duration)
    if key == "lang" and prediction.lang is not None:
        return language_tag(prediction.lang)
    value = None if key == "lang" else prediction.tags.get(key)
    return "(none)" if value is None else str(value)


def frequent_errors(
    predictions: Sequence[Prediction],
    normalize: Normalizer,
    count: int,
    operations: Collection[Operation] = ("sub", "ins", "del"),
) -> list[Confusion]:
    """The ``count`` most frequent word errors, most frequent first. Ties are sorted by their words."""
    found: Counter[tuple[Operation, str, str]] = Counter()
    for prediction in predictions:
        ref, hyp = prediction.pair(normalize)
        found.update(step for step in align(*word_units(ref, hyp)) if step[0] in operations)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Confusion(*step, times) for step, times in ordered]


def worst_utterances(predictions: Sequence[Prediction], normalize: Normalizer, count: int) -> list[Prediction]:
    """The ``count`` utterances with the most word errors. Utterances without an error are left out."""
    errors = {prediction.id: word_edits(*prediction.pair(normalize)).errors for prediction in predictions}
    wrong = [prediction for prediction in predictions if errors[prediction.id] > 0]
    return sorted(wrong, key=lambda prediction: (-errors[prediction.id], prediction.id))[:count]


def print_breakdown(breakdown: Breakdown, normalize: Normalizer, console: Console) -> None:
    """Print the tables of a breakdown. Empty tables are left out."""
    for key, groups in breakdown.groups.items():
        _print_groups(key, groups, console)
    if breakdown.confusions:
        _print_confusions(breakdown.confusions, console)
    if breakdown.worst:
        _print_worst(breakdown.worst, normalize, console)


def _print_groups(key: str, groups: Sequence[Group], console: Console) -> None:
    table = TitledTable(f"WER by {key}")
    for column in (key, "WER %", "sub", "ins", "del", "units", "of", "utterances", "hours"):
        table.add_column(column, justify="left" if column in (key, "of") else "right")
    for group in groups:
        words = group.words
        numbers = (f"{n:,}" for n in (words.sub, words.ins, words.dele, words.ref))
        more = (group.wer_unit, f"{group.utterances:,}", f"{group.duration / 3600:.2f}")
        table.add_row(group.value, f"{100 * words.rate:.2f}", *numbers, *more)
    console.print(table)


def _print_confusions(confusions: Sequence[Confusion], console: Console) -> None:
    table = TitledTable("Most frequent errors")
    for column in ("count", "reference", "hypothesis"):
        table.add_column(column, justify="right" if column == "count" else "left")
    for one in confusions:
        table.add_row(f"{one.count:,}", one.ref or "[dim](nothing)[/]", one.hyp or "[dim](nothing)[/]")
    console.print(table)


def _print_worst(predictions: Sequence[Prediction], normalize: Normalizer, console: Console) -> None:
    table = TitledTable("Worst utterances")
    table.add_column("id", no_wrap=True)
    table.add_column("errors", justify="right")
    table.add_column("alignment of reference and hypothesis")
    for prediction in predictions:
        ref, hyp = prediction.pair(normalize)
        table.add_row(prediction.id, str(word_edits(ref, hyp).errors), colored_diff(ref, hyp))
    console.print(table)
