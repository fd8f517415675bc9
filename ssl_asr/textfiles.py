"""Text files: read line by line, or written atomically; plain or gzipped; JSON; and names on the Hugging Face Hub."""

import codecs
import gzip
import json
import math
import os
import re
import reprlib
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

# End of the name of a file that is being written.
PARTIAL = ".partial"
# Most file systems allow 255 bytes, and a file that is being written has a longer name.
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 240, 4000
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
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
_GZIP = b"\x1f\x8b"
# "surrogateescape" decodes a byte that is not UTF-8 to one of these characters.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
# Data that is nested deeper could exceed Python's limit of recursion when it is written or sent to another process.
_MOST_LEVELS = 100

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
            with TextIOWrapper(unpacked, encoding=encoding, errors=errors) as lines:
                for number, line in enumerate(lines, start=1):
                    yield number, _checked_line(line, f"{path}:{number}", error)
    except FileNotFoundError:
        raise error(str(path), "no such file", remedy) from None
    except UnicodeError as problem:
        raise error(f"{path}:{number + 1}", f"cannot be read as text: {problem}", "save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise error(str(path), f"cannot be read: {problem}", remedy) from None


def _checked_line(line: str, where: str, error: Refusal) -> str:
    """A line without its end and without byte order marks."""
    text = line.removesuffix("\n").lstrip(_BOM)
    if not text.isascii() and (found := _NOT_UTF8.search(text)):
        byte = ord(found.group()) - 0xDC00
        what = f"cannot be read as UTF-8: byte 0x{byte:02x} after {text[: found.start()][-20:]!r}"
        raise error(where, what, "save the file as UTF-8")
    if "\0" in text:
        raise error(where, "cannot be read as text: it has a NUL character", "save the file as UTF-8 text")
    return text


def _starts(file: BufferedReader | gzip.GzipFile, mark: bytes) -> bool:
    """Whether a file starts with these bytes. Does not move its position."""
    return file.peek(len(mark))[: len(mark)] == mark


def overwritten(files: Iterable[Path], inputs: Iterable[Path]) -> Path | None:
    """The first of the files to write that is also an input, or None. Links, symbolic or hard, are the same file."""
    read = {same for path in inputs for same in _sameness(path)}
    return next((path for path in files if read.intersection(_sameness(path))), None)


def _sameness(path: Path) -> list[object]:
    """What is equal for two names of one regular file: resolved path and inode. Empty if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return []
    return [path.resolve(), (status.st_dev, status.st_ino)] if stat.S_ISREG(status.st_mode) else []


def other_unicode(start: bytes) -> str | None:
    """The name of the encoding of a text that starts with these bytes, if it is UTF-16 or UTF-32; otherwise None.

    Example:
        >>> other_unicode("{}".encode("utf-16")), other_unicode(b"{}")
        ('UTF-16', None)
    """
    marked = next((name.upper() for mark, name in _MARKS if start.startswith(mark)), None)
    return marked or ("UTF-16" if start.startswith((b'{\0"', b"\0{\0")) else None)


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing. The file gets its name at the end of the block, and only if there is no error.

    The folder is created if it does not exist.

    Example:
        >>> with written_whole(Path("/tmp/ssl_asr_example/text.txt")) as file:
        ...     _ = file.write("text")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{PARTIAL}")
    # What a killed process left. A link of that name must not be followed.
    partial.unlink(missing_ok=True)
    try:
        with naming(path), _open_to_write(partial) as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in errors of the file system that name none, as the error of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def remove_partial(folders: Iterable[Path]) -> None:
    """Remove files that killed processes left half-written in these folders. Nothing else may be writing there."""
    for folder in folders:
        for path in folder.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, so that a renamed file survives a power cut. Not all systems can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def too_long(path: Path) -> str | None:
    """What is too long for a file system, or None."""
    name = next((name for name in path.parts if len(os.fsencode(name)) > _MAX_NAME_BYTES), None)
    if name is not None:
        return f"the name {name[:40]}… is too long"
    return "the path is too long" if len(os.fsencode(path.absolute())) > _MAX_PATH_BYTES else None


def why_not_made(path: Path, *, folder: bool) -> str | None:
    """Why a file or folder cannot be written, or None if it can. Folders above it are made when it is written.

    Args:
        path: A path that may exist.
        folder: Whether it is a folder.
    """
    long = too_long(path)
    if long is not None:
        return long
    above = path if folder else path.parent
    while not os.path.lexists(above):
        above = above.parent
    try:
        if os.path.lexists(path) and path.is_dir() != folder:
            kinds = ("file", "folder") if folder else ("folder", "file")
            return f"{path} is a {kinds[0]}, and a {kinds[1]} is needed"
        if not above.is_dir():
            return f"{path} cannot be written: {above} is not a folder"
        # A file without a name. Permissions alone do not say whether a file can be made.
        with tempfile.TemporaryFile(dir=above):
            return None
    except OSError as error:
        why = f"no permission for {above}" if isinstance(error, PermissionError) else f"{above}: {error.strerror}"
        return f"{path} cannot be written: {why}"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain data as strict JSON (RFC 8259), on one line if there is no ``indent``.

    NaN and infinite numbers, which JSON does not have, become null. Characters are written as they are, except those
    that some programs take for the end of a line. If a text has bytes of a file name that are not UTF-8, all characters
    beyond ASCII are escaped.

    Example:
        >>> to_json({"wer": float("nan"), "id": "é"})
        '{"wer": null, "id": "é"}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    if not is_unicode(text):
        text = json.dumps(json.loads(text), ensure_ascii=True, indent=indent)
    return _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def from_json(line: bytes, where: str, *, error: Refusal, remedy: str) -> Any:
    """Plain data of one line of strict JSON (RFC 8259) in UTF-8. A byte order mark may come first.

    What the line says is kept, or it is refused: so are NaN, infinite numbers, numbers that are too large, keys that
    are repeated and data of more than 100 levels. `to_json` writes all other data so that it is read again as it is.

    Args:
        line: The line, with or without its end.
        where: ``file:line`` for the error message.
        error: Class of the error that is raised.
        remedy: What to do, for the error message.

    Raises:
        error: The line is not JSON, or is refused.
    """
    try:
        text = line.decode("utf-8").removeprefix(_BOM)
        value = _STRICT.decode(text)
    except UnicodeDecodeError as problem:
        raise error(where, f"is not UTF-8 (byte {problem.start})", "save the file as UTF-8") from None
    except json.JSONDecodeError as problem:
        what = f"is not valid JSON: {problem.msg.removesuffix(' at')} at column {problem.colno}"
        raise error(where, what, remedy) from None
    except _RefusedError as problem:
        raise error(where, f"is not valid JSON: {problem}", remedy) from None
    except ValueError:
        raise error(where, "has a number with thousands of digits", "write a smaller number") from None
    except RecursionError:
        pass
    else:
        if line.count(b"[") + line.count(b"{") <= _MOST_LEVELS or not _is_deep(value):
            return value
    raise error(where, f"is nested more than {_MOST_LEVELS} levels deep", "write flatter data")


class _RefusedError(ValueError):
    """Text that Python's json module accepts and RFC 8259 does not allow."""


def _no_constant(name: str) -> Any:
    raise _RefusedError(f"it has {name}")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError(f"the number {shown(text)} is too large")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _RefusedError(f"the key {shown(key)} is repeated")
    return row


_STRICT = json.JSONDecoder(parse_float=_finite_number, parse_constant=_no_constant, object_pairs_hook=_distinct)


def _is_deep(value: Any) -> bool:
    """Whether data has more than `_MOST_LEVELS` levels."""
    level: list[Any] = [[value]]
    for _ in range(_MOST_LEVELS + 1):
        items = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in items if isinstance(item, dict | list)]
    return bool(level)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 200


def shown(value: Any) -> str:
    """Plain data for a message, cut if it is long.

    Example:
        >>> shown(list(range(10)))
        '[0, 1, 2, 3, 4, 5, ...]'
    """
    return _SHORT.repr(value)


def is_unicode(text: str) -> bool:
    """Whether a text is Unicode, without halves of surrogate pairs: names of files, and JSON, may have any.

    Example:
        >>> is_unicode("é"), is_unicode(chr(0xD800))
        (True, False)
    """
    return text.isascii() or text == text.encode(errors="replace").decode()


def is_system_text(text: str) -> bool:
    """Whether a text can be given to the operating system: no NUL, and no character that no name of a file has.

    Names of files that are not UTF-8 are such texts: Python has a character for each of their bytes.
    """
    try:
        return "\0" not in text and (text.isascii() or bool(os.fsencode(text)))
    except UnicodeEncodeError:
        return False


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of a file or folder: not empty, and not too long for a file system."""
    return bool(text.strip()) and is_system_text(text) and too_long(Path(text)) is None


def _finite(value: Any) -> Any:
    """The data with None in place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_to_write(path: Path) -> TextIO:
    """A UTF-8 text file. It is gzipped if its name ends in ``.gz``, or will after `written_whole`."""
    if not path.name.removesuffix(PARTIAL).endswith(".gz"):
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
