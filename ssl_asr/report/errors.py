"""Where the errors of a split are: WER by tag and length with intervals, confusions, and the worst utterances."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_asr.data.languages import language_tag
from ssl_asr.metrics.breakdown import Confusion, frequent_errors, members_of, worst_utterances
from ssl_asr.metrics.edit import Operation, align, word_edits, word_units
from ssl_asr.metrics.report import Prediction, Score, score_predictions
from ssl_asr.pages.charts import interval_cell
from ssl_asr.pages.page import folded, table
from ssl_asr.report.scored import Scored
from ssl_asr.report.sounds import Sounds
from ssl_asr.report.style import interval, percent
from ssl_asr.types import Normalizer

# A tag with more values is a name rather than a group.
_MOST_VALUES = 30
# Units of an alignment. A loop of a decoder is longer.
_MOST_UNITS = 300


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What is shown of errors.

    Attributes:
        by: Keys to group errors by. None takes the length, and tags with 2 to 30 values.
        confusions: Number of most frequent substitutions, insertions and deletions each.
        worst: Number of utterances with the most errors.
    """

    by: Sequence[str] | None
    confusions: int
    worst: int


def split_section(scored: Scored, split: str, detail: Detail, sounds: Sounds) -> str:
    """HTML of a split. "" without predictions."""
    rows = scored.run.splits.get(split)
    if rows is None or split not in scored.scores:
        return ""
    name, normalize = next(iter(scored.normalizers.items()))
    whole = scored.scores[split][0]
    parts = [f"<h2>Errors on {html.escape(split)}</h2>"]
    if len(scored.normalizers) > 1:
        parts.append(f'<p class="note">Texts are normalized by {html.escape(name)}.</p>')
    keys, left_out = grouping_keys(rows, detail.by)
    parts += [_groups(key, groups_of(rows, key, name, normalize), whole) for key in keys]
    if left_out:
        named = ", ".join(html.escape(one) for one in left_out)
        parts.append(f'<p class="note">Not grouped by {named}. The key by=[…] names the tags to group by.</p>')
    parts.append(_confusions(rows, normalize, detail.confusions))
    parts.append(_worst(rows, normalize, detail.worst, sounds))
    return "\n".join(parts)


def grouping_keys(rows: Sequence[Prediction], by: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The keys to group by that some utterance has, and those that are left out, with the reason."""
    values: dict[str, set[str]] = {"lang": {str(row.lang) for row in rows if row.lang is not None}}
    for row in rows:
        for tag, value in row.tags.items():
            values.setdefault(tag, set()).add(str(value))
    if by is not None:
        keys = [key for key in by if key == "length" or values.get(key)]
        return keys, [f"{key} (no utterance has it)" for key in by if key not in keys]
    # A group has two utterances or more on average.
    most = min(_MOST_VALUES, len(rows) // 2)
    keys = ["length", *(key for key, some in values.items() if 2 <= len(some) <= most)]
    return keys, [f"{key} ({len(some):,} values)" for key, some in values.items() if len(some) > max(1, most)]


def groups_of(rows: Sequence[Prediction], key: str, name: str, normalize: Normalizer) -> dict[str, tuple[Score, float]]:
    """Score and seconds of speech of each value of a key."""
    return {
        value: (score_predictions(members, name, normalize), sum(row.duration for row in members))
        for value, members in members_of(rows, key, language_tag).items()
    }


def _groups(key: str, groups: dict[str, tuple[Score, float]], whole: Score) -> str:
    finite = [one.wer_high if math.isfinite(one.wer_high) else one.wer for one, _ in groups.values()]
    largest = max([bound for bound in finite if math.isfinite(bound)] + [whole.wer])
    cells = [
        [
            html.escape(value),
            percent(one.wer),
            interval(one.wer_low, one.wer_high),
            interval_cell(one.wer, one.wer_low, one.wer_high, largest=largest, mean=whole.wer),
            *(f"{number:,}" for number in (one.words.sub, one.words.ins, one.words.dele, one.words.ref)),
            f"{one.utterances:,}",
            f"{seconds / 60:,.1f}",
        ]
        for value, (one, seconds) in groups.items()
    ]
    heads = [key, "WER %", "95 % interval", f"0 to {100 * largest:.1f} %", "sub", "ins", "del", whole.wer_unit]
    wide = table([*heads, "utterances", "minutes"], cells, numbers=(1, 2, 4, 5, 6, 7, 8, 9))
    title = f"<h3>WER by {html.escape(key)}</h3>"
    return title + (wide if len(groups) <= 12 else folded(f"{len(groups)} values", wide, opened=True))


def _confusions(rows: Sequence[Prediction], normalize: Normalizer, most: int) -> str:
    if most == 0:
        return ""
    kinds: dict[str, tuple[Operation, list[str]]] = {
        "Substitutions": ("sub", ["reference", "hypothesis"]),
        "Insertions": ("ins", ["inserted"]),
        "Deletions": ("del", ["deleted"]),
    }
    columns = []
    for title, (operation, heads) in kinds.items():
        found = frequent_errors(rows, normalize, most, [operation])
        content = _counted(found, heads) if found else '<p class="note">None.</p>'
        columns.append(f"<div><h3>{title}</h3>{content}</div>")
    return f'<div class="columns">{"".join(columns)}</div>'


def _counted(found: Sequence[Confusion], heads: Sequence[str]) -> str:
    largest = found[0].count
    cells = []
    for one in found:
        words = [html.escape(word) for word in (one.ref, one.hyp) if word]
        wide = f'<span class="count" style="width:{4 * one.count / largest:.2f}rem"></span>'
        cells.append([*words, f"{one.count:,}", wide])
    return table([*heads, "count", ""], cells, numbers=(len(heads),))


def _worst(rows: Sequence[Prediction], normalize: Normalizer, most: int, sounds: Sounds) -> str:
    if most == 0:
        return ""
    worst = worst_utterances(rows, normalize, most)
    if not worst:
        return "<h3>Worst utterances</h3><p>All utterances are right.</p>"
    kinds = "<del>deleted</del> <ins>inserted</ins> <del>reference</del><ins>hypothesis</ins>"
    legend = f'<p class="aligned note">{kinds}</p>'
    return "\n".join(["<h3>Worst utterances</h3>", legend, *(utterance(one, normalize, sounds) for one in worst)])


def utterance(one: Prediction, normalize: Normalizer, sounds: Sounds) -> str:
    """HTML of an utterance: its errors, its audio and its alignment."""
    pair = one.pair(normalize)
    edits = word_edits(*pair)
    errors = f"{edits.errors:,} {'error' if edits.errors == 1 else 'errors'} in {edits.ref:,}"
    facts = [f"<b>{html.escape(one.id)}</b>", errors, f"{one.duration:.1f} s"]
    if one.tags.get("speaker") is not None:
        facts.append(f"speaker {html.escape(str(one.tags['speaker']))}")
    head = "".join(f"<span>{fact}</span>" for fact in facts)
    return f"<article><header>{head}</header>{sounds.player(one)}{aligned(*pair)}</article>"


def aligned(ref: str, hyp: str) -> str:
    """The alignment of two texts as HTML: deleted units are struck out, inserted ones underlined.

    Example:
        >>> aligned("a b", "a c")
        '<p class="aligned">a <span class="sub"><del>b</del><ins>c</ins></span></p>'
    """
    parts = []
    steps = align(*word_units(ref, hyp))
    for operation, old, new in steps[:_MOST_UNITS]:
        removed, added = f"<del>{html.escape(old)}</del>", f"<ins>{html.escape(new)}</ins>"
        shown = {"sub": f'<span class="sub">{removed}{added}</span>', "ins": added, "del": removed}
        parts.append(shown.get(operation, html.escape(old)))
    more = [f'<span class="note">… and {len(steps) - _MOST_UNITS:,} more</span>'] if len(steps) > _MOST_UNITS else []
    return f'<p class="aligned">{" ".join([*parts, *more])}</p>'
