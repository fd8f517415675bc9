"""Text files, gzipped or not."""

import gzip
from pathlib import Path
from typing import Any, Literal, TextIO


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """A UTF-8 text file, gzipped where ``.gz`` is among its suffixes."""
    if ".gz" not in path.suffixes:
        return path.open(mode, encoding="utf-8")
    opened: Any = gzip.open(path, mode, encoding="utf-8")  # noqa: SIM115
    file: TextIO = opened
    return file
