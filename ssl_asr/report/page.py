"""The page of a report: one run, or several side by side."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssl_asr.pages import charts, pictures
from ssl_asr.pages.page import document
from ssl_asr.report.about import data_section, headline, notices, origin_section, scores_table, subtitle
from ssl_asr.report.errors import Detail, split_section
from ssl_asr.report.scored import Scored
from ssl_asr.report.several import several_section
from ssl_asr.report.sounds import Sounds
from ssl_asr.report.style import STYLE
from ssl_asr.report.training import training_charts

# Where linked audio may come from.
_LINKED = ("data:", "'self'", "file:", "http:", "https:")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What a page shows.

    Attributes:
        detail: What is shown of errors.
        details: Number of runs with a section of their own, the best ones.
        draw: Makes the HTML of the pictures of a run.
        links: Whether audio is linked.
    """

    detail: Detail
    details: int
    draw: Callable[[Scored], str]
    links: bool


def report_page(scored: Sequence[Scored], options: PageOptions, sounds: Sounds) -> str:
    """The HTML page of runs.

    Args:
        scored: At least one run, in the order of the command line.
        options: What is shown.
        sounds: Players of utterances.
    """
    if len(scored) == 1:
        [one] = scored
        title = f"Report: {one.run.name}"
        parts = [f"<h1>{html.escape(one.run.name)}</h1>", *_run(one, options, sounds)]
    else:
        title = f"Report: {len(scored)} runs"
        overview, ordered = several_section(scored)
        parts = [f"<h1>{len(scored):,} runs</h1>", notices(scored), overview]
        parts.append(training_charts([one.run for one in ordered[: charts.COLORS]]))
        for one in ordered[: options.details]:
            content = "\n".join(_run(one, options, sounds))
            parts.append(f'<details class="run"><summary>{html.escape(one.run.name)}</summary>{content}</details>')
        if len(ordered) > options.details:
            parts.append(f'<p class="note">The best {options.details} runs are shown in full (details=…).</p>')
    parts.append(f'<p class="note">{html.escape(sounds.summary())}</p>')
    style = charts.STYLE + pictures.STYLE + STYLE
    media = _LINKED if options.links else ("data:",)
    return document(title, [part for part in parts if part], style=style, script=charts.SCRIPT, media=media)


def _run(one: Scored, options: PageOptions, sounds: Sounds) -> list[str]:
    """The sections of a run."""
    return [
        f'<p class="note">{html.escape(subtitle(one.run))}</p>',
        notices([one]),
        headline(one),
        scores_table(one),
        training_charts([one.run]),
        *(split_section(one, split, options.detail, sounds) for split in one.scores),
        options.draw(one),
        data_section(one.run),
        origin_section(one.run),
    ]
