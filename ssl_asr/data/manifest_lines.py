"""Lines of manifests: which are right, and what they become."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ssl_asr.data.files import joined, without_parents
from ssl_asr.data.languages import given_language, same_language
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import from_json, is_system_text, is_unicode, shown
from ssl_asr.types import Seconds, Utterance

# Key of rows that do not come from one file: where each comes from.
WHERE = "<where>"
_KNOWN = {"audio_filepath", "duration", "text", "id", "offset", "lang", "task", "channel", "weight", WHERE}
_KNOWN |= {"references"}
# Seconds, and weights, above this are mistakes: as samples, they would exceed what floats can hold.
_MOST = 1_000_000_000
# Characters of a path, which no file system allows more of, and the highest channel.
_LONGEST, _LAST_CHANNEL = 4095, 65_535


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_path(value: Any) -> bool:
    """Whether a value can be the path of a file. No file is named ``.`` or ``..``, or has a NUL in its name."""
    return isinstance(value, str) and value.strip("./") != "" and len(value) <= _LONGEST and is_system_text(value)


def _are_paths(values: Sequence[str]) -> bool:
    """Whether all values can be paths, as `_is_path` says of one."""
    return max(map(len, values)) <= _LONGEST and all(v.strip("./") for v in values) and is_system_text("".join(values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_unicode(value)


# key -> (check of its value, what the value should be)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio_filepath": (_is_path, "the path of a file"),
    "duration": (lambda v: _is_number(v) and v > 0, f"a positive number of seconds, at most {_MOST:,}"),
    "text": (_is_text, "a string of Unicode characters"),
    "references": (
        lambda v: isinstance(v, list) and v != [] and all(map(_is_text, v)),
        "a list of one or more strings of Unicode characters",
    ),
    "prompt": (_is_text, "a string of Unicode characters"),
    "id": (lambda v: isinstance(v, str) and v != "", "a non-empty string"),
    "offset": (_is_number, f"a number of seconds from 0 to {_MOST:,}"),
    "lang": (lambda v: isinstance(v, str), "a language code"),
    "task": (lambda v: v in ("transcribe", "translate"), "'transcribe' or 'translate'"),
    "channel": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LAST_CHANNEL,
        "a channel number from 0",
    ),
    "weight": (_is_number, f"a number from 0 to {_MOST:,}"),
}


def is_allowed(key: str, value: Any) -> bool:
    """Whether a line of a manifest may have this value. Keys that are kept as tags may have any.

    Example:
        >>> is_allowed("weight", "2"), is_allowed("weight", 2), is_allowed("age", "2")
        (False, True, True)
    """
    return key != WHERE and (key not in _FIELDS or _FIELDS[key][0](value))


# key -> whether all its values are right, given as a list and the set of their types, which is much quicker than one by
# one. Other keys have values that are checked one by one.
_COLUMNS: dict[str, Callable[[list[Any], set[type]], bool]] = {
    "audio_filepath": lambda values, kinds: kinds == {str} and _are_paths(values),
    "duration": lambda values, kinds: kinds <= {int, float} and min(values) > 0 and max(values) <= _MOST,
    "text": lambda values, kinds: kinds == {str} and is_unicode("".join(values)),
    "id": lambda values, kinds: kinds == {str} and all(values),
    "lang": lambda _, kinds: kinds == {str},
}


def check_row(row: Any, where: str, *, require_text: bool) -> list[ManifestError]:
    """All errors of one parsed line."""
    if not isinstance(row, dict):
        return [ManifestError(where, f"is a JSON {type(row).__name__}", "write one JSON object per line")]
    errors = []
    if WHERE in row:
        errors.append(ManifestError(where, f"has the key '{WHERE}', which is in use", "rename the key"))
    # The first of several references is the text.
    has_text = not require_text or row.get("references") is not None
    required = ("audio_filepath",) if has_text else ("audio_filepath", "text")
    for name, (is_right, expected) in _FIELDS.items():
        if row.get(name) is None:
            if name in required:
                errors.append(ManifestError(where, f"has no '{name}'", f"add {expected}"))
        elif not is_right(row[name]):
            errors.append(ManifestError(where, f"'{name}' is {shown(row[name])}, expected {expected}"))
    return errors


def default_id(row: Mapping[str, Any]) -> str:
    """The id of a line that has none: its path without the suffix, and its offset."""
    stem = Path(row["audio_filepath"]).with_suffix("").as_posix()
    offset = row.get("offset")
    return stem if offset is None else f"{stem}@{offset}"


def _joined(folder: str, path: str) -> str:
    """Path of a file in a folder, as `pathlib` writes it, which takes ten times as long. Without ``..`` inside."""
    if "::" in path or "://" in path:
        return joined(folder, path)
    if path.startswith(("/", ".")) or "//" in path or "/." in path or path.endswith("/") or os.sep != "/":
        return without_parents(str(Path(folder) / path))
    return path if folder == "." else f"{folder.removesuffix('/')}/{path}"


def utterance_of(row: dict[str, Any], where: str, folder: str, duration: Seconds) -> Utterance:
    """The utterance of a checked row.

    Args:
        row: The object of a line.
        where: ``file:line``, unless the row says where it comes from.
        folder: Folder at which relative audio paths start.
        duration: Seconds.
    """
    text, *references = texts_of(row)
    return Utterance(
        id=row.get("id") or default_id(row),
        audio_filepath=_joined(folder, row["audio_filepath"]),
        duration=duration,
        text=text,
        offset=float(row.get("offset") or 0.0),
        lang=given_language(row.get("lang")),
        task=row.get("task"),
        channel=row.get("channel"),
        weight=1.0 if row.get("weight") is None else float(row["weight"]),
        where=row.get(WHERE, where),
        tags={key: value for key, value in row.items() if key not in _KNOWN},
        references=tuple(references),
    )


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """The references of a checked row, each once: ``text``, then ``references``. One empty text if it has none.

    Example:
        >>> texts_of({"text": "colour", "references": ["color", "colour"]}), texts_of({"references": ["a"]})
        (['colour', 'color'], ['a'])
    """
    text, references = row.get("text"), row.get("references")
    if references is None:
        return [text or ""]
    return list(dict.fromkeys(references if text is None else [text, *references]))


def loaded(line: bytes) -> dict[str, Any]:
    """The object of a checked line."""
    try:
        row: dict[str, Any] = orjson.loads(line)
    # It does not take all that `from_json` takes, such as half of a surrogate pair.
    except orjson.JSONDecodeError:
        return dict(json.loads(line))
    for value in row.values():
        # Integers with more than 64 bits become floats.
        if (kind := type(value)) is dict or kind is list or (kind is float and abs(value) > _MOST):
            return dict(json.loads(line))
    return row


def loaded_texts(line: bytes) -> tuple[list[str], str | None]:
    """References and language of a checked line, quicker than by `loaded`: numbers need not be exact."""
    try:
        row: Mapping[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = json.loads(line)
    return texts_of(row), row.get("lang")


def plain_row(line: bytes) -> dict[str, Any] | None:
    """The object of a line, if it is JSON as `from_json` takes it, by a quicker way. None if this is not certain.

    orjson keeps the last of repeated keys. In an object of plain values without repeated keys, each key and each string
    has two quotation marks, and with them there are more.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if type(row) is not dict:
        return None
    strings = 0
    for value in row.values():
        kind = type(value)
        if kind is str:
            strings += 1
        elif kind is dict or kind is list:
            return None
    marks = line.count(b'"')
    if b"\\" in line:
        if b"\\\\" in line:
            return None
        marks -= line.count(b'\\"')
    return row if marks == 2 * (len(row) + strings) else None


def plain_rows(lines: Sequence[bytes], *, require_text: bool) -> list[dict[str, Any] | None]:
    """The objects of lines that are valid, in about a third of the time. None where this is not certain.

    Lines with the same keys are checked together: all values of a key at once, and the quotation marks of all lines,
    see `plain_row`. If a check fails, the lines are checked one by one.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    try:
        rows: list[Any] = list(map(orjson.loads, lines))
    except orjson.JSONDecodeError:
        rows = []
    # Of other values than objects, the keys of a list or a string are its items.
    if rows and set(map(type, rows)) == {dict}:
        for index, keys in enumerate(map(tuple, rows)):
            groups.setdefault(keys, []).append(index)
    found: list[dict[str, Any] | None] = [None] * len(lines)
    for keys, group in groups.items():
        if _are_plain(keys, [rows[i] for i in group], [lines[i] for i in group], require_text=require_text):
            for i in group:
                found[i] = rows[i]
    for i, row in enumerate(found):
        if row is None and (row := plain_row(lines[i])) is not None:
            found[i] = None if check_row(row, "", require_text=require_text) else row
    return found


def _are_plain(
    keys: Sequence[str], rows: Sequence[dict[str, Any]], lines: Sequence[bytes], *, require_text: bool
) -> bool:
    """Whether lines with the same keys are valid, and JSON as `from_json` takes it. False if this is not certain."""
    if WHERE in keys or "audio_filepath" not in keys or (require_text and "text" not in keys):
        return False
    strings = 0
    for key in keys:
        values = [row[key] for row in rows]
        kinds = list(map(type, values))
        strings += kinds.count(str)
        distinct = set(kinds)
        # Null is as if the key was not there.
        if distinct == {type(None)} and key not in ("audio_filepath", "text"):
            continue
        if not distinct <= {str, int, float, bool} or not _are_right(key, values, distinct):
            return False
    text = b"\n".join(lines)
    marks = text.count(b'"')
    if b"\\" in text:
        if b"\\\\" in text:
            return False
        marks -= text.count(b'\\"')
    # A repeated key only adds marks, so the sums are equal only if the marks of each line are.
    return marks == 2 * (len(keys) * len(rows) + strings)


def _are_right(key: str, values: list[Any], kinds: set[type]) -> bool:
    """Whether all values of a key are right. Keys that are kept as tags may have any."""
    if key in _COLUMNS:
        return _COLUMNS[key](values, kinds)
    return key not in _FIELDS or all(map(_FIELDS[key][0], values))


def parsed(line: bytes, where: str, *, require_text: bool) -> tuple[dict[str, Any], list[ManifestError]]:
    """The JSON object of a line, and all its errors."""
    try:
        row = from_json(line, where, error=ManifestError, remedy="write one JSON object per line")
    except ManifestError as error:
        return {}, [error]
    return row, check_row(row, where, require_text=require_text)


def has_values(row: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a row has these values, as text. Languages are compared whatever their code."""
    return all(
        same_language(value, str(row.get(key))) if key == "lang" else str(row.get(key)) == value
        for key, value in wanted.items()
    )
