"""Files of text: gzipped or not, written whole or not at all; and names that are no files."""

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

# What language models in files are called.
_FILES = (".arpa", ".gz", ".bin", ".binary", ".klm", ".kenlm", ".lm")


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
    try:
        with open_text(partial, "wt") as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def is_hub_name(name: str) -> bool:
    """Whether a name may be one on the Hugging Face Hub, and is not that of a file.

    Example:
        >>> [is_hub_name(name) for name in ("gpt2", "openai-community/gpt2", "words.arpa", "models/a.arpa.gz")]
        [True, True, False, False]
    """
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.endswith(_FILES)
