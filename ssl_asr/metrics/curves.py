"""Reads what a run logged, without the libraries that log it."""

import csv
import io
import math
from pathlib import Path

from ssl_asr.errors import ManifestError

Curves = dict[str, list[tuple[int, float]]]
"""Numbers of updates and values of each logged number, by name."""


def parse_metrics(path: Path, damaged: list[int] | None = None) -> Curves:
    """The columns of a ``metrics.csv``. The row of update n has step n - 1.

    Args:
        path: The file.
        damaged: Gets the number of each line that is damaged: it has a value that is no number, too many values, or no
            step. Its numbers are used as far as they are there.

    Raises:
        ManifestError: The file has no column ``step``.
    """
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), restkey="")
    if "step" not in (reader.fieldnames or ()):
        raise ManifestError(str(path), "has no column 'step'", "")
    curves: Curves = {}
    for row in reader:
        numbers = {name: value for name in row if name and (value := _number(row[name])) is not None}
        step = numbers.pop("step", math.nan)
        written = sum(bool(value) for name, value in row.items() if name != "step")
        if damaged is not None and (written > len(numbers) or not math.isfinite(step)):
            damaged.append(reader.line_num)
        if math.isfinite(step):
            for name, value in numbers.items():
                curves.setdefault(name, []).append((int(step) + 1, value))
    return curves


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
