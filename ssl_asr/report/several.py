"""Several runs side by side: their order, which differ significantly, how they are set up, and the jobs of a sweep."""

import html
import math
from collections.abc import Sequence
from dataclasses import replace

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.ranking import LEVEL, Ranking, rank
from ssl_asr.metrics.significance import TEST, shown_p
from ssl_asr.pages.charts import COLORS, interval_cell
from ssl_asr.pages.page import folded, table
from ssl_asr.report.errors import grouping_keys, groups_of
from ssl_asr.report.runs import plain
from ssl_asr.report.scored import Scored
from ssl_asr.report.style import count, duration, interval, percent
from ssl_asr.report.sweep import Choices, choices_of, effects_section, job_name

# More runs have no matrix of pairs.
_MOST_PAIRED = 12
# Settings that differ between all runs and change nothing.
_WHERE = ("run_dir", "run_name", "resume", "verbose", "samples", "data.num_workers", "logger")


def several_section(scored: Sequence[Scored]) -> tuple[str, list[Scored]]:
    """HTML of the comparison of runs, and the runs in order: the lowest WER of the split that ranks them first."""
    split = ranking_split(scored)
    ordered = sorted(scored, key=lambda one: (one.run.status != "done", _first_finite(one.wer(split), _noted(one))))
    choices = choices_of([one.run for one in ordered])
    if choices is not None:
        chosen = zip(ordered, choices.values, strict=True)
        ordered = [replace(one, run=replace(one.run, name=job_name(one.run, values))) for one, values in chosen]
    parts = [_overview(ordered, split, choices)]
    if choices is not None:
        parts.append(effects_section(ordered, choices, split))
    parts += [_significance(ordered, name) for name in _splits(ordered)]
    parts += [_by_key(ordered, split, choices), _differences(ordered, choices)]
    return "\n".join(part for part in parts if part), ordered


def ranking_split(scored: Sequence[Scored]) -> str:
    """The split that ranks runs: dev if all runs that have scores have it, or else the first split of most runs.

    A test set that chooses among many runs is a dev set.
    """
    names = [name for one in scored for name in one.scores]
    with_scores = sum(bool(one.scores) for one in scored)
    if names.count("dev") == with_scores > 0:
        return "dev"
    return max(dict.fromkeys(names), key=names.count, default="dev")


def _splits(scored: Sequence[Scored]) -> list[str]:
    return list(dict.fromkeys(name for one in scored for name in one.scores))


def _first_finite(*values: float) -> float:
    return next((value for value in values if math.isfinite(value)), math.inf)


def _noted(one: Scored) -> float:
    """The score that a job of a sweep noted."""
    note = one.run.note
    return math.nan if note is None or note.score is None else note.score


def _overview(scored: Sequence[Scored], split: str, choices: Choices | None) -> str:
    """A row for each run, in order."""
    splits = [split, *(name for name in _splits(scored) if name != split)] if _splits(scored) else []
    normalizer = next((one.scores[split][0].normalizer for one in scored if split in one.scores), "")
    highs = [one.scores[split][0].wer_high for one in scored if split in one.scores]
    largest = max((high for high in highs if math.isfinite(high)), default=1.0)
    swept = [] if choices is None else choices.keys
    rows = []
    for place, one in enumerate(scored):
        swatch = f'<span class="swatch c{place % COLORS}"></span>' if place < COLORS else ""
        row = [str(place + 1), f"{swatch}{html.escape(_short(one, choices))}"]
        row += [html.escape(choices.values[place].get(key, "")) for key in swept] if choices is not None else []
        for name in splits:
            first = one.scores[name][0] if name in one.scores else None
            row += ["", ""] if first is None else [percent(first.wer), interval(first.wer_low, first.wer_high)]
            if name == split:
                bounds = (first.wer, first.wer_low, first.wer_high) if first is not None else (math.nan,) * 3
                row.append(interval_cell(*bounds, largest=largest, mean=None))
        trains, seconds = one.run.last("model/trainable"), one.run.fact("seconds")
        row.append("" if trains is None else count(trains))
        row.append(duration(seconds) if isinstance(seconds, int | float) else "")
        row.append(html.escape(one.run.status))
        rows.append(row)
    heads, numbers = ["", "run", *swept], [0]
    for name in splits:
        numbers += [len(heads), len(heads) + 1]
        heads += [f"{name} WER %", "95 % interval", *([""] if name == split else [])]
    numbers += [len(heads), len(heads) + 1]
    content = table([*heads, "trains", "time", "status"], rows, numbers=numbers)
    note = html.escape(_ranked_by(split, normalizer) if splits else "No run has scores.")
    if not _on_same(scored, split):
        note += ' <span class="warning">The runs have different utterances, so their order says little.</span>'
    return f'<h2>Ranking</h2><p class="note">{note}</p><div class="ranking">{content}</div>'


def _ranked_by(split: str, normalizer: str) -> str:
    said = f"Ranked by the WER on {split} ({normalizer}), the lowest first. Runs that are not done come last."
    return f"{said} The dev set chooses; the test sets tell how good the choice is." if split == "dev" else said


def _short(one: Scored, choices: Choices | None) -> str:
    """A name for a narrow column."""
    return one.run.name if choices is None or one.run.note is None else f"job {one.run.note.number}"


def _significance(scored: Sequence[Scored], split: str) -> str:
    """The order on a split, and a matrix of paired tests."""
    title = f"<h2>Differences on {html.escape(split)}</h2>"
    members = [one for one in scored if split in one.run.splits and split in one.scores]
    if len(members) < 2:
        return ""
    lacking = [one.run.name for one in scored if one not in members]
    notes = [f"Runs without predictions are left out: {', '.join(lacking)}."] if lacking else []
    if len(members) > _MOST_PAIRED:
        notes.append(f"Of {len(members)} runs, the best {_MOST_PAIRED} are compared.")
        members = members[:_MOST_PAIRED]
    name, normalize = next(iter(members[0].normalizers.items()))
    try:
        ranking = rank([one.run.splits[split] for one in members], name, normalize)
    except ManifestError as error:
        what = "The runs have different utterances or references, so differences are not tested"
        return f'{title}<p class="warning">{html.escape(f"{what}: {error.what}.")}</p>'
    names = [one.run.name for one in members]
    leaders = [names[each] for each in ranking.leaders]
    best, others = leaders[0], leaders[1:]
    than = f"and cannot be told from {', '.join(others)}" if others else "and significantly better than the others"
    said = f"{best} is best, {than}"
    pairs = len(members) * (len(members) - 1) // 2
    tests = f"p-values of the {TEST}{f', corrected for {pairs} tests by Holm' if pairs > 1 else ''}"
    how = f"{said} ({name}, {tests}, level {LEVEL:g})."
    lines = [f"<p>{html.escape(' '.join([how, *notes]))}</p>", _matrix(ranking, names)]
    return title + "".join(lines)


def _matrix(ranking: Ranking, names: Sequence[str]) -> str:
    rows = []
    for place, row in enumerate(ranking.order, start=1):
        cells = [str(place), html.escape(names[row]), percent(ranking.scores[row].wer)]
        for column in ranking.order:
            if row == column:
                cells.append("")
                continue
            p = ranking.p(row, column)
            difference = f"{100 * (ranking.scores[column].wer - ranking.scores[row].wer):+.2f}"
            shown = f"<b>{difference}</b>" if p < LEVEL else difference
            cells.append(f"{shown}<br><small>p {html.escape(shown_p(p))}</small>")
        rows.append(cells)
    places = [str(place) for place in range(1, len(names) + 1)]
    numbers = (0, *range(2, 3 + len(names)))
    heads = ["", "run", "WER %", *places]
    note = '<p class="note">WER of the column’s run minus that of the row’s, in percent; bold if p is below 0.05.</p>'
    return f'<div class="matrix-p">{table(heads, rows, numbers=numbers)}</div>{note}'


def _by_key(scored: Sequence[Scored], split: str, choices: Choices | None) -> str:
    """WER of each run by length and tag, side by side."""
    members = [one for one in scored if split in one.run.splits and split in one.scores][:COLORS]
    if len(members) < 2 or not _on_same(members, split):
        return ""
    name, normalize = next(iter(members[0].normalizers.items()))
    parts = []
    for key in grouping_keys(members[0].run.splits[split], None)[0]:
        groups = [groups_of(one.run.splits[split], key, name, normalize) for one in members if _has(one, split, key)]
        if len(groups) < len(members):
            continue
        values = list(dict.fromkeys(value for each in groups for value in each))
        rows = []
        for value in values:
            scores = [each[value][0] if value in each else None for each in groups]
            utterances = next(one.utterances for one in scores if one is not None)
            rows.append([html.escape(value), f"{utterances:,}", *("" if s is None else percent(s.wer) for s in scores)])
        heads = [key, "utterances", *(_short(one, choices) for one in members)]
        wide = table(heads, rows, numbers=range(1, len(heads)))
        parts.append(folded(f"WER % by {html.escape(key)}", wide, opened=len(values) <= 12))
    return f"<h2>Groups of {html.escape(split)}</h2>" + "".join(parts) if parts else ""


def _on_same(scored: Sequence[Scored], split: str) -> bool:
    """Whether all runs with predictions of a split have the same utterances."""
    ids = {frozenset(row.id for row in one.run.splits[split]) for one in scored if split in one.run.splits}
    return len(ids) <= 1


def _has(one: Scored, split: str, key: str) -> bool:
    return key == "length" or bool(grouping_keys(one.run.splits[split], [key])[0])


def _differences(scored: Sequence[Scored], choices: Choices | None) -> str:
    """Settings that are not the same in all runs."""
    members = [one for one in scored if one.run.config]
    if len(members) < 2:
        return ""
    configs = [plain(one.run.config) for one in members]
    keys = sorted({key for config in configs for key in config})
    rows = []
    for key in keys:
        values = [config.get(key, "") for config in configs]
        if len(set(values)) > 1 and not key.startswith(_WHERE):
            rows.append([f"<code>{html.escape(key)}</code>", *(html.escape(value) for value in values)])
    if not rows:
        return "<h2>Settings</h2><p>The configurations are the same.</p>"
    heads = ["setting", *(_short(one, choices) for one in members)]
    return f"<h2>Settings that differ</h2>{table(heads, rows)}"
