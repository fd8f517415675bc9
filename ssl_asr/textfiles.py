"""Text files: plain or gzipped, and written atomically; and names on the Hugging Face Hub."""

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

# End of the name of a file that is being written.
_PARTIAL = ".partial"
# File name endings of language models.
_FILES = (".arpa", ".gz", ".bin", ".binary", ".klm", ".kenlm", ".lm")


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """Open a UTF-8 text file. It is gzipped if its name ends in ``.gz``, or will after `written_whole`."""
    if not path.name.removesuffix(_PARTIAL).endswith(".gz"):
        return path.open(mode, encoding="utf-8")
    opened: Any = gzip.open(path, mode, encoding="utf-8")  # noqa: SIM115
    file: TextIO = opened
    return file


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing. The file gets its name at the end of the block, and only if there is no error.

    The folder is created if it does not exist.

    Example:
        >>> with written_whole(Path("/tmp/ssl_asr_example/text.txt")) as file:
        ...     _ = file.write("text")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    try:
        with open_text(partial, "wt") as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def is_hub_name(name: str) -> bool:
    """Whether a name can be a name on the Hugging Face Hub, and is not the name of a file.

    Example:
        >>> [is_hub_name(name) for name in ("gpt2", "openai-community/gpt2", "words.arpa", "models/a.arpa.gz")]
        [True, True, False, False]
    """
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.endswith(_FILES)
