"""The jobs of a sweep: what was chosen in each, and the effect of each choice."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_asr.config.sweeps import shared_overrides
from ssl_asr.pages.charts import Point, choices
from ssl_asr.pages.page import table
from ssl_asr.report.runs import Run
from ssl_asr.report.scored import Scored
from ssl_asr.report.style import percent


@dataclass(frozen=True, slots=True)
class Choices:
    """What the jobs of a sweep chose.

    Attributes:
        keys: The keys that not all jobs set alike, in the order of the command line.
        values: For each job, its value of each key.
    """

    keys: list[str]
    values: list[dict[str, str]]


def choices_of(runs: Sequence[Run]) -> Choices | None:
    """The choices of a sweep, or None if some run is not a job of one, or all are the same."""
    notes = [run.note for run in runs if run.note is not None]
    if len(notes) < len(runs) or len(runs) < 2:
        return None
    shared = shared_overrides(notes)
    values = [dict(_pair(override) for override in note.overrides if override not in shared) for note in notes]
    keys = list(dict.fromkeys(key for each in values for key in each))
    return Choices(keys, values) if keys else None


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    # Hydra writes the values of a sweep as Python does.
    return key, value.lower() if value in ("True", "False") else value


def job_name(run: Run, chosen: dict[str, str]) -> str:
    """The number of a job with its choices."""
    number = run.name if run.note is None else f"job {run.note.number}:"
    return " ".join([number, *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())])


def effects_section(scored: Sequence[Scored], found: Choices, split: str) -> str:
    """HTML of the effect of each choice on the WER of a split: a chart, and means. "" if no job has a WER.

    Jobs are paired where they differ in this choice only. Jobs that are not done are left out.
    """
    wers = [100 * one.wer(split) for one in scored]
    if not any(math.isfinite(wer) and one.run.status == "done" for one, wer in zip(scored, wers, strict=True)):
        return ""
    figures = []
    for key in found.keys:
        values = _sorted_values([each.get(key, "") for each in found.values])
        points = [
            Point(chosen.get(key, ""), wer, one.run.name, _rest(chosen, key))
            for one, chosen, wer in zip(scored, found.values, wers, strict=True)
            if math.isfinite(wer) and one.run.status == "done"
        ]
        chart = choices(f"WER on {split} in % by {key}", values, points, x=key)
        figures.append(f"<div>{chart}{_means(key, values, points)}</div>")
    return f'<h2>Effect of each choice</h2><div class="plots">{"".join(figures)}</div>'


def _rest(chosen: dict[str, str], key: str) -> str:
    return " ".join(f"{other}={value}" for other, value in chosen.items() if other != key)


def _sorted_values(values: Sequence[str]) -> list[str]:
    """The distinct values: numbers by size, others in the order of the jobs' names."""
    distinct = list(dict.fromkeys(values))
    try:
        return sorted(distinct, key=float)
    except ValueError:
        return sorted(distinct)


def _means(key: str, values: Sequence[str], points: Sequence[Point]) -> str:
    """The mean of each value, and its mean difference from the first value over the pairs."""
    first = {point.group: point.y for point in points if point.value == values[0]}
    rows = []
    for value in values:
        here = [point for point in points if point.value == value]
        pairs = [point.y - first[point.group] for point in here if point.group in first]
        mean = sum(point.y for point in here) / len(here) if here else math.nan
        best = min((point.y for point in here), default=math.nan)
        difference = f"{sum(pairs) / len(pairs):+.2f}" if pairs and value != values[0] else ""
        rows.append(
            [
                html.escape(value),
                f"{len(here):,}",
                percent(mean / 100),
                percent(best / 100),
                difference,
                f"{len(pairs):,}" if difference else "",
            ]
        )
    heads = [key, "jobs", "mean", "best", f"against {values[0]}", "pairs"]
    return table(heads, rows, numbers=(1, 2, 3, 4, 5))
