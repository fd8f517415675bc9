"""Charts as inline SVG: curves with values under the pointer, intervals in the cells of a table, and points by choice.

Colors are those of `ssl_asr.pages.page`, by number. Series differ in their dashes too, so that they can be told apart
without colors.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLORS = 8
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 230, 52, 10, 10, 34
# Points of a curve that are drawn. More are averaged.
MOST_POINTS = 300
# A positive axis with a larger ratio of its ends is logarithmic.
_LOG_RATIO = 50.0

STYLE = (
    """
.chart svg { width: 100%; touch-action: pan-y; } .chart { position: relative; }
.chart .grid { stroke: var(--line); stroke-width: 1; } .chart .axis { stroke: var(--note); }
.chart text { fill: var(--note); font-size: 13px; } .chart .y { text-anchor: end; }
.chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart polygon { opacity: .16; } .chart circle { stroke: none; } .chart .mark { stroke: var(--ink); stroke-width: 2.5; }
.chart .cursor { stroke: var(--note); stroke-dasharray: 2 2; visibility: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; margin: .1rem 0 .2rem; }
.legend button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  display: inline-flex; align-items: center; gap: .35rem; text-align: left; }
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.legend svg { width: 26px; height: 10px; flex: none; stroke-width: 2.2; }
.tip { position: absolute; pointer-events: none; background: var(--paper); border: 1px solid var(--line);
  border-radius: .3rem; padding: .2rem .5rem; font-size: .8rem; line-height: 1.35; display: none; z-index: 2;
  font-variant-numeric: tabular-nums; box-shadow: 0 1px 5px #0003; max-width: 75%; }
.interval { width: 170px; height: 18px; display: block; max-width: none; }
.interval .whisker { stroke: var(--c0); stroke-width: 2; } .interval circle { fill: var(--c0); }
.interval .mean { stroke: var(--note); stroke-dasharray: 3 2; }
@media print { .legend button[aria-pressed=false] { display: none; } }
"""
    + "".join(f".c{n} {{ --color: var(--c{n}); }}" for n in range(COLORS))
    + """
.chart [class^=c] polyline, .legend line { stroke: var(--color); } .chart [class^=c] polygon { fill: var(--color); }
.chart [class^=c] circle, .dot { fill: var(--color); color: var(--color); }
.hidden { display: none; }
"""
)

# Values under the pointer, and series that the legend hides. Without scripts, the charts are complete.
SCRIPT = """
for (const figure of document.querySelectorAll('.chart[data-series]')) {
  const series = JSON.parse(figure.dataset.series), [left, right, width] = JSON.parse(figure.dataset.place);
  const svg = figure.querySelector('svg.plot'), cursor = svg.querySelector('.cursor');
  const tip = figure.appendChild(Object.assign(document.createElement('div'), {className: 'tip'}));
  const buttons = [...figure.querySelectorAll('.legend button')], hidden = new Set();
  buttons.forEach((button, i) => button.onclick = () => {
    hidden.has(i) ? hidden.delete(i) : hidden.add(i);
    button.setAttribute('aria-pressed', !hidden.has(i));
    svg.querySelectorAll('g[data-i="' + i + '"]').forEach(one => one.classList.toggle('hidden', hidden.has(i)));
  });
  const hide = () => { tip.style.display = 'none'; cursor.style.visibility = 'hidden'; };
  const show = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * width / box.width;
    let best = null;
    series.forEach((one, i) => { if (!hidden.has(i)) one.px.forEach((x, k) => {
      if (best === null || Math.abs(x - at) < Math.abs(best.px - at)) best = {px: x, label: one.x[k]}; }); });
    if (best === null || at < left - 12 || at > right + 12) return hide();
    const lines = [];
    series.forEach((one, i) => {
      if (hidden.has(i) || !one.px.length) return;
      let near = 0;
      one.px.forEach((x, k) => { if (Math.abs(x - best.px) < Math.abs(one.px[near] - best.px)) near = k; });
      if (Math.abs(one.px[near] - best.px) < 14) lines.push([one.name || 'value', one.y[near]]);
    });
    tip.replaceChildren(...[[figure.dataset.x, best.label], ...lines].map(([name, value]) =>
      Object.assign(document.createElement('div'), {textContent: name + ': ' + value})));
    tip.style.display = 'block';
    cursor.setAttribute('x1', best.px); cursor.setAttribute('x2', best.px); cursor.style.visibility = 'visible';
    const x = best.px * box.width / width + box.left - figure.getBoundingClientRect().left;
    const room = figure.clientWidth - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(room, x < room - 12 ? x + 12 : x - tip.offsetWidth - 12)) + 'px';
    tip.style.top = svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + 14 + 'px';
  };
  svg.addEventListener('pointermove', show); svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', hide);
}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A curve.

    Attributes:
        name: Its name in the legend. A single curve may have none.
        x, y: Positions and values, in order of x. Values that are not finite are left out.
        band: Low and high value of each point; empty without an interval.
        color: Number of the color.
        dash: Number of the dashes.
        marks: Whether points are marked.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()
    color: int = 0
    dash: int = 0
    marks: bool = False

    def points(self) -> list[tuple[float, float, float, float]]:
        """x, y, low and high of the finite points, at most `MOST_POINTS`, which are means of equally many."""
        bands = self.band or [(y, y) for y in self.y]
        rows = [
            (x, y, low, high) for x, y, (low, high) in zip(self.x, self.y, bands, strict=True) if math.isfinite(x + y)
        ]
        size = math.ceil(len(rows) / MOST_POINTS)
        if size <= 1:
            return rows
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]
        return [(x, y, low, high) for x, y, low, high in means]


class Axis:
    """A linear or logarithmic axis.

    Args:
        low, high: Smallest and largest value.
        start, end: Positions of both.
        log: Whether it is logarithmic.
        ticks: About how many ticks it has.

    Example:
        >>> Axis(0.0, 9.0, 0.0, 100.0).ticks
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False, ticks: int = 5) -> None:
        if high <= low:
            low, high = (low / 2, low * 2) if log else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)
        self._low, self._high, self._start, self._end, self._log = low, high, start, end, log
        self.ticks = _powers(low, high) if log else _round_ticks(low, high, ticks)

    def at(self, value: float) -> float:
        """Position of a value."""
        low, high, at = (
            (math.log(x) for x in (self._low, self._high, value))
            if self._log
            else (
                self._low,
                self._high,
                value,
            )
        )
        return self._start + (at - low) / (high - low) * (self._end - self._start)


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next((size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.8), raw)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]
        if len(found) >= 3:
            return found if len(found) <= 7 else found[:: math.ceil(len(found) / 7)]
    return found or [low, high]


def number(value: float) -> str:
    """A number for an axis or a tooltip, with four digits.

    Example:
        >>> [number(value) for value in (0.0, 0.12345, 2e-05, 12345.0, 0.30000000000000004, 1e9)]
        ['0', '0.1235', '2e-05', '12,345', '0.3', '1e+09']
    """
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def curves(title: str, series: Sequence[Series], *, x: str, note: str = "", zero: bool = False) -> str:
    """A chart of curves with a legend. The pointer shows values, and the legend hides curves. "" without points.

    The vertical axis is logarithmic if all values are positive and span a factor of 50.

    Args:
        title: Title, with the unit of the values.
        series: The curves.
        x: Name of the horizontal axis.
        note: Further text of the caption.
        zero: Whether the vertical axis starts at 0 if it is linear.
    """
    shown = [(one, points) for one in series if (points := one.points())]
    if not shown:
        return ""
    every = [point for _, points in shown for point in points]
    values = [value for point in every for value in point[1:]]
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    across = Axis(min(p[0] for p in every), max(p[0] for p in every), _LEFT, _WIDTH - _RIGHT)
    room = 0.0 if log else 0.05 * (high - low)
    floor = 0.0 if (zero or low < room) and low >= 0 else low - room
    up = Axis(low if log else floor, high + room, _HEIGHT - _BOTTOM, _TOP, log=log)
    drawn = [_curve(place, one, points, across, up) for place, (one, points) in enumerate(shown)]
    data = [
        {
            "name": one.name,
            "px": [round(across.at(p[0]), 1) for p in points],
            "x": [number(round(p[0], 3)) for p in points],
            "y": [_shown(p, has_band=bool(one.band)) for p in points],
        }
        for one, points in shown
    ]
    cursor = f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"></line>'
    notes = [note] if note else []
    if any(len(one.x) > MOST_POINTS for one, _ in shown):
        notes.append(f"means, at most {MOST_POINTS} points a curve")
    notes += ["logarithmic"] if log else []
    plot = _plot([*_grid(across, up, x), *drawn, cursor], title)
    ends = json.dumps([_LEFT, _WIDTH - _RIGHT, _WIDTH])
    place = f'data-x="{html.escape(x)}" data-place="{ends}" data-series="{html.escape(json.dumps(data))}"'
    # The title says what a curve without a name is.
    legend = _legend([one for one, _ in shown]) if any(one.name for one, _ in shown) else ""
    return f'<figure class="chart" {place}>{caption(title, notes)}{legend}{plot}</figure>'


def caption(title: str, notes: Sequence[str]) -> str:
    """The caption of a figure."""
    more = f' <span class="note">({html.escape(", ".join(notes))})</span>' if notes else ""
    return f"<figcaption>{html.escape(title)}{more}</figcaption>"


def _shown(point: tuple[float, float, float, float], *, has_band: bool) -> str:
    _, y, low, high = point
    return f"{number(y)} ({number(low)} - {number(high)})" if has_band else number(y)


def _plot(parts: Sequence[str], title: str, height: int = _HEIGHT) -> str:
    label = html.escape(title)
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _grid(across: Axis, up: Axis, x: str) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"></line>')
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{number(tick)}</text>')
    bottom = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"></line>')
    parts += [f'<text class="tick" x="{across.at(t):.1f}" y="{bottom + 15}">{number(t)}</text>' for t in across.ticks]
    parts.append(f'<text class="tick" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 5}">{html.escape(x)}</text>')
    return parts


def _curve(place: int, one: Series, points: Sequence[tuple[float, float, float, float]], across: Axis, up: Axis) -> str:
    places = [(across.at(x), up.at(y)) for x, y, _, _ in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = []
    if one.band and len(points) > 1:
        upper = [(across.at(x), up.at(high)) for x, _, _, high in points]
        lower = [(across.at(x), up.at(low)) for x, _, low, _ in reversed(points)]
        edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *lower])
        parts.append(f'<polygon points="{edge}"></polygon>')
    parts.append(f'<polyline points="{line}"{_dashed(one)}></polyline>')
    # A single point has no line.
    if one.marks or len(points) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"></circle>' for x, y in places]
    title = f"<title>{html.escape(one.name)}</title>"
    return f'<g class="c{one.color % COLORS}" data-i="{place}">{title}{"".join(parts)}</g>'


def _dashed(one: Series) -> str:
    dash = _DASHES[one.dash % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _legend(series: Sequence[Series]) -> str:
    items = []
    for one in series:
        dash = _DASHES[one.dash % len(_DASHES)]
        line = (
            f'<line x1="0" x2="26" y1="5" y2="5"{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}></line>'
        )
        sample = f'<svg viewBox="0 0 26 10" class="c{one.color % COLORS}">{line}</svg>'
        items.append(f'<button type="button" aria-pressed="true">{sample}{html.escape(one.name)}</button>')
    return f'<div class="legend">{"".join(items)}</div>'


def interval_cell(value: float, low: float, high: float, *, largest: float, mean: float | None) -> str:
    """A value with its interval, for a cell of a table. All cells of a column share their axis, which starts at 0.

    Args:
        value: The value. Nothing is drawn if it is not finite.
        low, high: Bounds of its interval; not finite without an interval.
        largest: End of the axis.
        mean: Value of a dashed line. None draws none.
    """
    if not math.isfinite(value):
        return ""
    axis = Axis(0.0, largest if largest > 0 else 1.0, 5, 165)
    parts = []
    if mean is not None:
        parts.append(f'<line class="mean" x1="{axis.at(mean):.1f}" x2="{axis.at(mean):.1f}" y1="0" y2="18"></line>')
    if math.isfinite(low) and math.isfinite(high):
        ends = f'x1="{axis.at(low):.1f}" x2="{axis.at(min(high, largest)):.1f}"'
        parts.append(f'<line class="whisker" {ends} y1="9" y2="9"></line>')
    parts.append(f'<circle cx="{axis.at(value):.1f}" cy="9" r="3.5"></circle>')
    return f'<svg class="interval" viewBox="0 0 170 18" aria-hidden="true">{"".join(parts)}</svg>'


@dataclass(frozen=True, slots=True)
class Point:
    """A run in a chart of a choice.

    Attributes:
        value: Its value of the choice.
        y: What is measured.
        name: Its name.
        group: Points with the same group differ in this choice only, and are joined.
    """

    value: str
    y: float
    name: str
    group: str


def choices(title: str, values: Sequence[str], points: Sequence[Point], *, x: str) -> str:
    """A chart of a measure by the values of a choice. "" without points.

    A run is a dot, a bar is the mean, and lines join runs that differ in this choice only.

    Args:
        title: Title, with the unit of the measure.
        values: Values of the choice, in order.
        points: The runs.
        x: Name of the choice.
    """
    points = [point for point in points if math.isfinite(point.y)]
    if not points:
        return ""
    step = (_WIDTH - _LEFT - _RIGHT) / len(values)
    center = {value: _LEFT + (place + 0.5) * step for place, value in enumerate(values)}
    low, high = min(p.y for p in points), max(p.y for p in points)
    room = (high - low) * 0.08
    up = Axis(max(0.0, low - room) if low >= 0 else low - room, high + room, _HEIGHT - _BOTTOM, _TOP)
    none = Axis(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    none.ticks = []
    parts = _grid(none, up, x)
    every = max(1, math.ceil(len(values) * 60 / (_WIDTH - _LEFT)))
    for place, value in enumerate(values):
        if place % every == 0:
            shown = value if len(value) <= max(6, step / 7) else f"{value[: max(5, int(step / 7) - 1)]}…"
            name = f"{html.escape(shown)}<title>{html.escape(value)}</title>"
            parts.append(f'<text class="tick" x="{center[value]:.1f}" y="{_HEIGHT - _BOTTOM + 15}">{name}</text>')
    parts.append(f'<g class="c0">{"".join(_joined(values, points, center, up))}</g>')
    for value in values:
        here = [point.y for point in points if point.value == value]
        if here:
            y, at, half = up.at(sum(here) / len(here)), center[value], min(22.0, step / 3)
            ends = f'x1="{at - half:.1f}" x2="{at + half:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="mark" {ends}></line>')
    return f'<figure class="chart">{caption(title, ["bar: mean"])}{_plot(parts, title)}</figure>'


def _joined(values: Sequence[str], points: Sequence[Point], center: dict[str, float], up: Axis) -> list[str]:
    """Lines between the runs of each group, and a dot for each run."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    lines = []
    for members in groups.values():
        ordered = sorted(members, key=lambda point: values.index(point.value))
        joined = " ".join(f"{center[p.value]:.1f},{up.at(p.y):.1f}" for p in ordered)
        lines.append(f'<polyline points="{joined}" stroke-width="1" opacity=".55"></polyline>')
    dots = [
        f'<circle cx="{center[p.value]:.1f}" cy="{up.at(p.y):.1f}" r="4">'
        f"<title>{html.escape(f'{p.name}: {number(p.y)}')}</title></circle>"
        for p in points
    ]
    return [*lines, *dots]
