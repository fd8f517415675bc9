"""Text files, gzipped or not, and written whole or not at all."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """A UTF-8 text file, gzipped where ``.gz`` is among its suffixes."""
    if ".gz" not in path.suffixes:
        return path.open(mode, encoding="utf-8")
    opened: Any = gzip.open(path, mode, encoding="utf-8")  # noqa: SIM115
    file: TextIO = opened
    return file


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file to write, which takes its name only once all is written; its folder is made.

    Example:
        >>> with written_whole(Path("/tmp/ssl_asr_example/text.txt")) as file:
        ...     _ = file.write("whole")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with open_text(partial, "wt") as file:
        yield file
    partial.replace(path)
