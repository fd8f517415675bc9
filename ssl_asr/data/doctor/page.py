"""The report as one HTML page without scripts, fonts or other files."""

import html
from collections import defaultdict

import numpy as np

from ssl_asr.data.doctor.findings import LEVELS, MEANINGS, Finding
from ssl_asr.data.doctor.report import Report
from ssl_asr.pages.page import definitions, document, folded, table
from ssl_asr.pages.plots import bars, histograms

# Lines of a finding that the page lists. All are in check.json.
_LISTED = 20


def page(report: Report) -> str:
    """The HTML page of a report."""
    verdict = f"{report.errors:,} errors" if report.errors else "no errors"
    parts = [
        f"<h1>Check of {len(report.splits)} manifests: {verdict}</h1>",
        _splits(report),
        "<h2>Findings</h2>",
        _counts(report),
        _legend(report),
        "<h2>Plots</h2>",
        f'<div class="plots">{"".join(_plots(report))}</div>',
        "<h2>Lines</h2>",
        *_lines(report),
    ]
    return document(f"ssl-asr check: {verdict}", parts)


def _splits(report: Report) -> str:
    heads = ["split", "manifest", "lines", "hours", "speakers", "dropped", "sample rates", "channels"]
    rows = [
        [
            html.escape(name),
            f"<code>{html.escape(str(split.path))}</code>",
            f"{split.lines:,}",
            f"{split.hours:.2f}",
            f"{split.speakers:,}",
            f"{len(report.dropped(name)):,}",
            ", ".join(f"{rate:,} Hz {n:,}" for rate, n in split.rates.most_common()),
            ", ".join(f"{channels}: {n:,}" for channels, n in split.channels.most_common()),
        ]
        for name, split in report.splits.items()
    ]
    return table(heads, rows, numbers=(2, 3, 4, 5))


def _counts(report: Report) -> str:
    rows = []
    for level in LEVELS:
        for (split, finding), count in report.counts.items():
            if report.level(finding) == level:
                name = f'<span class="{level}">{html.escape(finding)}</span>'
                rows.append([level, name, html.escape(split), f"{count:,}", f"{100 * count / report.lines(split):.1f}"])
    if not rows:
        return "<p>Nothing was found.</p>"
    return table(["level", "finding", "split", "lines", "%"], rows, numbers=(3, 4))


def _legend(report: Report) -> str:
    """What the words of the page mean: levels, the findings of this report, and units."""
    found = dict.fromkeys(finding for _, finding in report.counts)
    names = [name for level in LEVELS for name in found if report.level(name) == level]
    words = {
        **LEVELS,
        **{name: MEANINGS.get(name, "the audio cannot be used") for name in names},
        "dropped": "Lines that the cleaned manifest in the folder clean does not have. skipped.jsonl has the reasons.",
        "dB of full scale": "Level of the audio. 0 dB is the largest that a file holds. Speech usually has -35 to -15.",
        "characters per second": "Without spaces. Speech in alphabets usually has 8 to 20.",
    }
    return folded("What the words mean", definitions(list(words.items())))


def _plots(report: Report) -> list[str]:
    unseen = [(f"{character} U+{ord(character):04X}", count) for character, count in report.unseen.most_common()]
    figures = [
        ("Length", "s", "seconds"),
        ("Speaking rate", "characters per second", "rate"),
        ("Level", "dB of full scale", "level_db"),
        ("Text length", "characters", "characters"),
    ]
    plots = [
        histograms(title, unit, {name: np.asarray(getattr(split, key)) for name, split in report.splits.items()})
        for title, unit, key in figures
    ]
    return [*plots, bars("Characters that training does not have, by occurrences", unseen)]


def _lines(report: Report) -> list[str]:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for one in report.findings:
        groups[one.finding].append(one)
    parts = []
    for level in LEVELS:
        for finding, some in groups.items():
            if report.level(finding) != level:
                continue
            rows = [
                [
                    html.escape(one.split),
                    html.escape(one.id),
                    f"<code>{html.escape(one.where)}</code>",
                    html.escape(one.detail),
                ]
                for one in some[:_LISTED]
            ]
            total = sum(count for (_, name), count in report.counts.items() if name == finding)
            shown = f"{total:,}" if total <= _LISTED else f"the first {len(rows)} of {total:,}"
            title = f'<span class="{level}">{html.escape(finding)}</span>: {shown}'
            lines = table(["split", "id", "where", "detail"], rows)
            parts.append(folded(title, lines, opened=level == "error"))
    return parts
