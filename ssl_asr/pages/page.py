"""HTML pages that are one file: no fonts, scripts, styles or pictures from elsewhere.

Texts are escaped by the functions that take texts. A function that takes HTML says so.
"""

import base64
import hashlib
import html
from collections.abc import Sequence

# Colors of series 0 to 7 (Okabe and Ito, darkened or lightened for contrast). The first two differ in brightness too.
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #fff; --line: #d5dbe1; --soft: #f3f5f7; --bar: #2f6f9f;
  --error: #b3261e; --warning: #9a6200; --note: #55606b; --good: #1b6e4b;
  --c0: #0068a8; --c1: #c94f00; --c2: #00805f; --c3: #a8488a; --c4: #8a6d00; --c5: #2f8fce; --c6: #6f4fc4;
  --c7: #5d6873; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --paper: #14191e; --line: #36404a; --soft: #1d242b;
  --bar: #6fb1de; --error: #ff8a80; --warning: #f2b84b; --note: #a3adb7; --good: #63d3a6;
  --c0: #5cb8f0; --c1: #ff9a52; --c2: #35cfa0; --c3: #e79ccb; --c4: #e3c64b; --c5: #a9d4f5; --c6: #b9a3f5;
  --c7: #aab4bd; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 75ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.good { color: var(--good); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1.5rem; }
figure { margin: 0; overflow-x: auto; break-inside: avoid; } figcaption { font-weight: 600; margin-bottom: .3rem; }
figcaption .note { font-weight: 400; }
svg { font: 12px system-ui, sans-serif; fill: var(--ink); max-width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); }
svg .name { text-anchor: end; } svg .tick { text-anchor: middle; } svg .small { font-size: 10px; fill: var(--note); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .4rem 0; }
dt { font-weight: 600; } dd { margin: 0; min-width: 0; }
details { margin: .4rem 0; } summary { cursor: pointer; } code, pre { font-size: .92em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: var(--soft); padding: .7rem; border-radius: .4rem; margin: .4rem 0; }
@media (max-width: 600px) { body { margin: 1rem auto; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .3rem; } h1 { font-size: 1.3rem; } }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2, h3 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } tr, article { break-inside: avoid; } .wide, figure { overflow: visible; } }
"""


def document(
    title: str, parts: Sequence[str], *, style: str = "", script: str = "", media: Sequence[str] = ("data:",)
) -> str:
    """A whole page. Its content security policy lets it load nothing, and run only its own script.

    Args:
        title: Title of the page.
        parts: HTML of the body.
        style: CSS in addition to the common one.
        script: JavaScript, at the end of the body.
        media: Where audio may come from.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src {' '.join(media)}; {runs}"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}{style}</style>",
    ]
    ending = [f"<script>{script}</script>"] if script else []
    start = f'<!DOCTYPE html>\n<html lang="en"><head>{"".join(head)}</head>\n<body>'
    return "\n".join([start, *parts, *ending, "</body></html>\n"])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table that scrolls by itself if it is wider than the page.

    Args:
        heads: Texts of the columns.
        rows: HTML of the cells of each row.
        numbers: Indices of the columns that are aligned to the right.
    """
    marks = [' class="n"' if i in numbers else "" for i in range(len(heads))]
    head = "".join(f"<th{mark}>{html.escape(text)}</th>" for mark, text in zip(marks, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(rows: Sequence[tuple[str, str]]) -> str:
    """Words and their meanings, both texts."""
    listed = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(meaning)}</dd>" for word, meaning in rows)
    return f"<dl>{listed}</dl>"


def folded(summary: str, content: str, *, opened: bool = False) -> str:
    """Content that a click shows.

    Args:
        summary: HTML that is always shown.
        content: HTML.
        opened: Whether the content is shown at first.
    """
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{content}</details>"
