"""A matrix over time as inline SVG, whose cells are a PNG of one color with transparency."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_asr.pages.charts import Axis, caption, number

_WIDTH, _LEFT, _RIGHT, _ROW, _BOTTOM = 760, 64, 8, 15, 34

STYLE = """
.matrix svg { width: 100%; } .matrix text { fill: var(--note); } .matrix .name { font-size: 11px; }
.matrix rect { fill: var(--soft); } .matrix image { image-rendering: pixelated; }
.matrix .axis { stroke: var(--note); }
"""
# Of the cells, legible on light and on dark pages.
_COLOR = (47, 143, 206)


def matrix(title: str, values_RF: NDArray[np.float32], names: Sequence[str], end_s: float, *, note: str = "") -> str:
    """A picture of a matrix: time to the right, the first row at the top. "" without columns.

    Args:
        title: Title.
        values_RF: Values from 0 on, a row for each name and a column for each frame. The largest is opaque.
        names: Name of each row.
        end_s: Time of the end of the last column, in seconds.
        note: Further text of the caption.
    """
    rows, frames = values_RF.shape
    if rows == 0 or frames == 0:
        return ""
    height = rows * _ROW
    largest = float(values_RF.max())
    parts = [f'<rect x="{_LEFT}" y="0" width="{_WIDTH - _LEFT - _RIGHT}" height="{height}"></rect>']
    place = f'x="{_LEFT}" y="0" width="{_WIDTH - _LEFT - _RIGHT}" height="{height}" preserveAspectRatio="none"'
    alpha_RF = np.round(255 * values_RF / (largest or 1.0)).clip(0, 255).astype(np.uint8)
    data = base64.b64encode(png(alpha_RF, _COLOR)).decode()
    parts.append(f'<image {place} href="data:image/png;base64,{data}"></image>')
    for row, name in enumerate(names):
        shown = name if len(name) <= 9 else f"{name[:8]}…"
        text = f"{html.escape(shown)}<title>{html.escape(name)}</title>"
        parts.append(f'<text class="name" x="{_LEFT - 5}" y="{row * _ROW + 11}">{text}</text>')
    axis = Axis(0.0, end_s, _LEFT, _WIDTH - _RIGHT)
    for tick in axis.ticks:
        parts.append(f'<line class="axis" x1="{axis.at(tick):.1f}" x2="{axis.at(tick):.1f}" y1="{height}"')
        parts[-1] += f' y2="{height + 4}"></line><text class="tick" x="{axis.at(tick):.1f}" y="{height + 17}">'
        parts[-1] += f"{number(tick)}</text>"
    parts.append(f'<text class="tick" x="{(_LEFT + _WIDTH) / 2}" y="{height + 31}">time in s</text>')
    label, box = html.escape(title), f"0 0 {_WIDTH} {height + _BOTTOM}"
    picture = f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="matrix">{caption(title, [note] if note else [])}{picture}</figure>'


def png(alpha_RF: NDArray[np.uint8], color: tuple[int, int, int]) -> bytes:
    """A PNG of one color with a transparency for each pixel (255 is opaque), in a palette of 256 entries."""
    rows, columns = alpha_RF.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), alpha_RF], axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(color) * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
