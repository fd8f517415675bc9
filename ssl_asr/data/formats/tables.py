"""Tables with any names of columns: CSV and TSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_asr.data.formats.columns import KEYS, Reader, guess, guessed
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, split_name
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

SUFFIXES = (".csv", ".tsv", ".tab")
_DELIMITERS = ",;\t|"
_SPLIT_STEMS = ("train", "dev", "valid", "validation", "val", "test")

Record = tuple[int, list[str]]
"""Number of its first line, and fields."""


def is_table(path: Path) -> bool:
    """Whether a file has the suffix of a table."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def read_table(path: Path, options: ReadOptions, *, quotes: bool | None = None) -> Found:
    """Rows of a table whose first line has the names of the columns.

    ``options.columns`` names columns, or gives their numbers from 1 for a table without names.

    Args:
        path: The table. A file named train, dev, valid, validation, val or test is that split.
        options: How sources are read.
        quotes: Whether fields may be in quotation marks. None: in a TSV file, only if all quotation marks match.

    Raises:
        ManifestError: The file is not text, has no lines, or a quotation mark is not closed.
        ConfigError: Columns are missing.
    """
    records = read_records(path, quotes=quotes)
    if not records:
        raise ManifestError(str(path), "has no line", "the first line has the names of the columns")
    given = {key: name for key, name in options.columns.items() if key in KEYS}
    header = _header(records[0][1], given)
    body = records if header[:1] == ["1"] else records[1:]
    columns = guess(header, given, str(path))
    split = split_name(path.stem.lower()) if path.stem.lower() in _SPLIT_STEMS else NO_SPLIT
    reader = Reader(path.parent, columns, options, split)
    found = Found(notes=[guessed(columns, given, str(path))])
    for number, fields in body:
        where = f"{path}:{number}"
        if len(fields) != len(header):
            detail = f"has {len(fields)} fields, and the table has {len(header)} columns"
            found.skip(where, "bad_row", f"{detail}: check quotation marks and delimiters", where)
        else:
            reader.add(found, dict(zip(header, fields, strict=True)), where)
    return found


def _header(first: Sequence[str], given: dict[str, str]) -> list[str]:
    """Names of the columns. Numbers from 1 if all given columns are numbers that are not names."""
    names = [name.strip() for name in first]
    if given and all(name.isdigit() and name not in names for name in given.values()):
        return [str(number) for number in range(1, len(names) + 1)]
    return names


def read_records(path: Path, *, quotes: bool | None = None, delimiter: str | None = None) -> list[Record]:
    """All lines of a table that are not blank, as fields.

    Args:
        path: The table.
        quotes: See `read_table`.
        delimiter: Character between fields. None: a tab in a TSV file, and the commonest of ``,;|`` and tab in the
            first line of others.

    Raises:
        ManifestError: The file is not text, or a quotation mark is not closed.
    """
    lines = list(read_lines(path, error=ManifestError, remedy="save the table as UTF-8"))
    is_tsv = path.suffix.lower() in (".tsv", ".tab")
    if delimiter is None:
        first = next((line for _, line in lines if line.strip()), "")
        delimiter = "\t" if is_tsv else max(_DELIMITERS, key=first.count)
    if quotes is None and is_tsv:
        try:
            records = list(_parsed(path, lines, delimiter, quotes=True))
        except ManifestError:
            records = []
        if records and len({len(fields) for _, fields in records}) == 1:
            return records
        quotes = False
    return list(_parsed(path, lines, delimiter, quotes=quotes is not False))


def _parsed(path: Path, lines: Sequence[tuple[int, str]], delimiter: str, *, quotes: bool) -> Iterator[Record]:
    # A field in quotation marks may have several lines, so lines get their ends back.
    texts = (f"{line}\n" for _, line in lines)
    reader = csv.reader(
        texts, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
    )
    first = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = f"has a quotation mark that is not closed, or text after one: {error}"
            remedy = 'write a quotation mark inside a field twice: "…""…"'
            raise ManifestError(f"{path}:{first}", what, remedy) from None
        if any(field.strip() for field in fields):
            yield first, fields
        first = reader.line_num + 1
