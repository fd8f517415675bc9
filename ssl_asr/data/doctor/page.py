"""The report as one HTML page without scripts, fonts or other files."""

import html
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ssl_asr.data.doctor.findings import LEVELS, MEANINGS, Finding
from ssl_asr.data.doctor.plots import bars, histograms
from ssl_asr.data.doctor.report import Report

# Lines of a finding that the page lists. All are in check.json.
_LISTED = 20
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #fff; --line: #d5dbe1; --bar: #2f6f9f; --error: #b3261e;
  --warning: #9a6200; --note: #55606b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --paper: #14191e; --line: #36404a; --bar: #6fb1de;
  --error: #ff8a80; --warning: #f2b84b; --note: #a3adb7; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 545px), 1fr)); gap: 1.5rem; }
figure { margin: 0; overflow-x: auto; } figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { font: 12px system-ui, sans-serif; fill: var(--ink); max-width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); }
svg .name { text-anchor: end; } svg .tick { text-anchor: middle; } svg .small { font-size: 10px; fill: var(--note); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .4rem 0; }
dt { font-weight: 600; } dd { margin: 0; }
details { margin: .4rem 0; } summary { cursor: pointer; } code { font-size: .92em; overflow-wrap: anywhere; }
"""


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
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>ssl-asr check: {verdict}'
    start = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</title><style>{_STYLE}</style></head>'
    return "\n".join([start, "<body>", *parts, "</body></html>\n"])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    marks = [' class="n"' if i in numbers else "" for i in range(len(heads))]
    head = "".join(f"<th{mark}>{html.escape(text)}</th>" for mark, text in zip(marks, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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
    return _table(heads, rows, numbers=(2, 3, 4, 5))


def _counts(report: Report) -> str:
    rows = []
    for level in LEVELS:
        for (split, finding), count in report.counts.items():
            if report.level(finding) == level:
                name = f'<span class="{level}">{html.escape(finding)}</span>'
                rows.append([level, name, html.escape(split), f"{count:,}", f"{100 * count / report.lines(split):.1f}"])
    if not rows:
        return "<p>Nothing was found.</p>"
    return _table(["level", "finding", "split", "lines", "%"], rows, numbers=(3, 4))


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
    rows = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(meaning)}</dd>" for word, meaning in words.items())
    return f"<details><summary>What the words mean</summary><dl>{rows}</dl></details>"


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
            opened = " open" if level == "error" else ""
            table = _table(["split", "id", "where", "detail"], rows)
            parts.append(f"<details{opened}><summary>{title}</summary>{table}</details>")
    return parts
