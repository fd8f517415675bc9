"""Small plots as inline SVG: histograms of several splits below each other, and bars."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT, _LEFT, _BINS = 420, 64, 96, 60
_ROW = _HEIGHT + 14


def histograms(title: str, unit: str, values: Mapping[str, NDArray[np.float64]]) -> str:
    """One histogram for each split, with a common axis from the smallest to the largest value.

    Args:
        title: Title of the plot.
        unit: Unit of the axis.
        values: Values by name of the split. Splits without values are left out.
    """
    shown = {name: some_N for name, some_N in values.items() if len(some_N)}
    if not shown:
        return ""
    low = min(float(some_N.min()) for some_N in shown.values())
    high = max(float(some_N.max()) for some_N in shown.values())
    edges_N = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    step = _WIDTH / _BINS
    parts = []
    for row, (name, some_N) in enumerate(shown.items()):
        counts_N = np.histogram(some_N, edges_N)[0]
        bottom = row * _ROW + _HEIGHT
        bars = [
            f'<rect x="{_LEFT + i * step:.1f}" y="{bottom - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}">'
            f"<title>{edges_N[i]:.2f} to {edges_N[i + 1]:.2f} {html.escape(unit)}: {count:,}</title></rect>"
            for i, count in enumerate(counts_N.tolist())
            # Single outliers stay visible.
            if count and (tall := max(1.5, (_HEIGHT - 6) * count / counts_N.max()))
        ]
        middle = f"median {np.median(some_N):.2f}"
        parts += [*_label(name, middle, bottom), *bars, _line(bottom)]
    bottom = (len(shown) - 1) * _ROW + _HEIGHT
    for x in np.linspace(low, edges_N[-1], 5).tolist():
        place = _LEFT + _WIDTH * (x - low) / (edges_N[-1] - low)
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 14}">{x:.3g}</text>')
    return _figure(f"{title} ({unit})", parts, bottom + 20)


def bars(title: str, counts: Sequence[tuple[str, int]], *, most: int = 40) -> str:
    """Horizontal bars with their numbers, the first ``most`` of them."""
    if not counts:
        return ""
    largest = max(count for _, count in counts)
    parts = []
    for row, (name, count) in enumerate(counts[:most]):
        wide = max(1.5, (_WIDTH - 60) * count / largest)
        y = row * 18
        parts.append(f'<text class="name" x="{_LEFT - 6}" y="{y + 12}">{html.escape(name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y + 2}" width="{wide:.1f}" height="12"></rect>')
        parts.append(f'<text x="{_LEFT + wide + 4:.1f}" y="{y + 12}">{count:,}</text>')
    left = f", and {len(counts) - most} more" if len(counts) > most else ""
    return _figure(title + left, parts, 18 * min(most, len(counts)) + 4)


def _label(name: str, note: str, bottom: int) -> list[str]:
    shown = name if len(name) <= 14 else f"{name[:13]}…"
    named = f"{html.escape(shown)}<title>{html.escape(name)}</title>"
    return [
        f'<text class="name" x="{_LEFT - 6}" y="{bottom - 20}">{named}</text>',
        f'<text class="name small" x="{_LEFT - 6}" y="{bottom - 6}">{note}</text>',
    ]


def _line(bottom: int) -> str:
    return f'<line x1="{_LEFT}" y1="{bottom + 0.5}" x2="{_LEFT + _WIDTH}" y2="{bottom + 0.5}"></line>'


def _figure(title: str, parts: Sequence[str], height: int) -> str:
    width = _LEFT + _WIDTH + 24
    picture = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}</figure>"
