"""Text files: read line by line, or written atomically; plain or gzipped; and names on the Hugging Face Hub."""

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

# File name endings of language models.
_FILES = (".arpa", ".gz", ".bin", ".binary", ".klm", ".kenlm", ".lm")
_BOM = "\ufeff"
# The mark of UTF-32 begins like that of UTF-16, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
# "surrogateescape" decodes a byte that is not UTF-8 to one of these characters.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")

Refusal = Callable[[str, str, str], Exception]
"""Makes an error of where it is, what is wrong, and what to do: a class of `ssl_asr.errors`."""


def read_lines(path: Path, *, error: Refusal, remedy: str) -> Iterator[tuple[int, str]]:
    r"""The lines of a text file that a user made, each with its number from 1, without line ends.

    The file may be gzipped, whatever its name. The text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Byte
    order marks at the start of a line are left out (joined files have several). Lines end in ``\n``, ``\r\n`` or
    ``\r``; no other character ends a line.

    Args:
        path: Path of the file.
        error: Class of the errors that are raised.
        remedy: What to do, for the error message.

    Raises:
        error: The file cannot be read, or a line is not text: it has bytes in another encoding, or a NUL character.
            The message names the line.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            unpacked: Any = gzip.open(raw) if _starts(raw, _GZIP) else raw  # noqa: SIM115
            encoding = next((name for mark, name in _MARKS if _starts(unpacked, mark)), "utf-8")
            errors = "surrogateescape" if encoding == "utf-8" else "strict"
            for number, line in enumerate(TextIOWrapper(unpacked, encoding=encoding, errors=errors), start=1):
                text = line.removesuffix("\n").lstrip(_BOM)
                if not text.isascii() and (found := _NOT_UTF8.search(text)):
                    byte = ord(found.group()) - 0xDC00
                    what = f"cannot be read as UTF-8: byte 0x{byte:02x} after {text[: found.start()][-20:]!r}"
                    raise error(f"{path}:{number}", what, "save the file as UTF-8")
                if "\0" in text:
                    what = "cannot be read as text: it has a NUL character"
                    raise error(f"{path}:{number}", what, "save the file as UTF-8 text")
                yield number, text
    except FileNotFoundError:
        raise error(str(path), "no such file", remedy) from None
    except UnicodeError as problem:
        raise error(f"{path}:{number + 1}", f"cannot be read as text: {problem}", "save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise error(str(path), f"cannot be read: {problem}", remedy) from None


def _starts(file: BufferedReader | gzip.GzipFile, mark: bytes) -> bool:
    """Whether a file starts with these bytes. Does not move its position."""
    return file.peek(len(mark))[: len(mark)] == mark


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
        with _open_to_write(partial) as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def _open_to_write(path: Path) -> TextIO:
    """A UTF-8 text file. It is gzipped if one of its suffixes is ``.gz``."""
    if ".gz" not in path.suffixes:
        return path.open("w", encoding="utf-8")
    opened: Any = gzip.open(path, "wt", encoding="utf-8")  # noqa: SIM115
    file: TextIO = opened
    return file


def is_hub_name(name: str) -> bool:
    """Whether a name can be a name on the Hugging Face Hub, and is not the name of a file.

    Example:
        >>> [is_hub_name(name) for name in ("gpt2", "openai-community/gpt2", "words.arpa", "models/a.arpa.gz")]
        [True, True, False, False]
    """
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.lower().endswith(_FILES)
