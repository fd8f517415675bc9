"""Text files: plain or gzipped, and written atomically; and names on the Hugging Face Hub."""

import gzip
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

# File name endings of language models.
_FILES = (".arpa", ".gz", ".bin", ".binary", ".klm", ".kenlm", ".lm")


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """Open a UTF-8 text file. It is gzipped if one of its suffixes is ``.gz``."""
    if ".gz" not in path.suffixes:
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
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open_text(partial, "wt") as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain data as strict JSON (RFC 8259), on one line if there is no ``indent``.

    NaN and infinite numbers, which JSON does not have, become null. Characters are written as they are. If a text has
    bytes of a file name that are not UTF-8, all characters beyond ASCII are escaped.

    Example:
        >>> to_json({"wer": float("nan"), "id": "é"})
        '{"wer": null, "id": "é"}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    if text.isascii() or text == text.encode(errors="replace").decode():
        return text
    return json.dumps(json.loads(text), ensure_ascii=True, indent=indent)


def _finite(value: Any) -> Any:
    """The data with None in place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_hub_name(name: str) -> bool:
    """Whether a name can be a name on the Hugging Face Hub, and is not the name of a file.

    Example:
        >>> [is_hub_name(name) for name in ("gpt2", "openai-community/gpt2", "words.arpa", "models/a.arpa.gz")]
        [True, True, False, False]
    """
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.endswith(_FILES)
