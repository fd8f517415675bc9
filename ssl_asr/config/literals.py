"""Values as people type them, written in Hydra's grammar.

Hydra's grammar gives a meaning to commas, quotes, brackets, ``$`` and spaces, and knows no letters beyond ASCII. A path
or a text needs none of this. So a path is taken as it is typed, with these exceptions, in order:

1. A file of exactly this name exists: the name is taken.
2. The whole value is quoted, is a list ``[a,b]`` or a mapping ``{name: path}`` and the key takes one, contains an
   interpolation ``${key}`` of a known key or resolver, or, in a sweep, has several values: it has Hydra's meaning.
   Items are again taken as they are typed.
3. ``null``, where the key may be null. ``~/`` at the start is the home folder.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ssl_asr.config.readings import Reading
from ssl_asr.errors import ConfigError

# Text that Hydra's grammar and OmegaConf leave as it is.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.\.?/)[A-Za-z0-9_./-]*")
_KEYWORDS = {"null", "true", "false", "nan", "inf"}
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.S)
# At the start of an item, after brackets and a name. The first group is what is before the quotes.
_QUOTED_ITEM = re.compile(rf"([\s\[{{(]*+(?:[\w.-][\w .-]*+:\s*+)?)(?:{_QUOTED.pattern})(?=\s*(?:[,\])}}]|$))", re.S)
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")
_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.S)
# A name with commas is looked for in this many parts of a list.
_MOST_PARTS = 8
# PATH_MAX of Linux.
_MOST_CHARACTERS = 4096


@lru_cache(maxsize=1)
def parser() -> OverridesParser:
    """Hydra's parser of overrides."""
    return OverridesParser.create()


@lru_cache(maxsize=1024)
def parsed(override: str) -> Override | None:
    """An override parsed by Hydra, or None if its grammar does not allow it."""
    try:
        return parser().parse_override(override)
    except (HydraException, ValueError, ArithmeticError, RecursionError):
        return None


def escaped(text: str) -> str:
    r"""Text in which OmegaConf finds no interpolation.

    Example:
        >>> escaped("a${b}")
        'a\\${b}'
    """
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def literal(text: str) -> str:
    """A value in Hydra's grammar that comes to exactly this text.

    Example:
        >>> literal("talk.wav"), literal("talk (1).wav")
        ('talk.wav', "'talk (1).wav'")
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    # OmegaConf takes ??? for a missing value.
    return _in_quotes(escaped("./???" if text == "???" else text))


def _in_quotes(text: str) -> str:
    quoted: str = QuotedString(text=text, quote=Quote.single).with_quotes()
    return quoted


def exists(name: str) -> bool:
    """Whether a file or folder has exactly this name."""
    return name != "" and os.path.lexists(name)


def spell(key: str, value: str, reading: Reading, *, sweeps: bool, known: frozenset[str]) -> str:
    """A value in Hydra's grammar.

    Args:
        key: Key of the value.
        value: What was typed after ``key=``.
        reading: How the key is read.
        sweeps: Whether several values are several jobs.
        known: First parts of the keys that an interpolation may name.

    Raises:
        ConfigError: The value is a sweep, and ``sweeps`` is false. A path is empty. A name in a mapping has characters
            that Hydra's grammar does not allow.
    """
    if reading.role is None:
        return _by_grammar(key, value, reading, sweeps)
    speller = _Speller(key, reading, known)
    if exists(value):
        return speller.value(value)
    if sweeps:
        return _sweep(key, value, speller)
    pieces = split(value, speller.found)
    if len(pieces) == 1 or speller.is_structure(value):
        return speller.value(value)
    # Several items without brackets. A path may have commas, but a file that is read exists.
    if reading.listed and (any(map(speller.found, pieces)) or (not reading.single and reading.role == "text")):
        return speller.value(f"[{value}]")
    if reading.role not in ("output", "text") and not reading.listed and not value.startswith(("[", "{", "(")):
        raise _several(key, value)
    return speller.value(value)


def _several(key: str, value: str) -> ConfigError:
    as_text = shlex.quote(f"{key}={_in_quotes(value)}")
    what = f"no such file, or several values: {_shortened(value)}"
    return ConfigError(key, what, f"add -m to run a job for each, or write {as_text} for one name")


def _shortened(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:80]}…"


def _by_grammar(key: str, value: str, reading: Reading, sweeps: bool) -> str:
    """A value of a key that is no text: what Hydra can parse is Hydra's, the rest is text, for the checks of types."""
    override = parsed(f"{key}={value}")
    if override is None:
        return f"[{literal(value)}]" if reading.listed and not reading.single and not sweeps else literal(value)
    if sweeps:
        return value
    if override.is_sweep_override():
        if reading.listed and not _SWEEP_FUNCTION.fullmatch(value):
            return _in_brackets(key, value)
        raise ConfigError(key, f"has several values: {_shortened(value)}", "add -m to run a job for each")
    if reading.listed and not reading.single and value != "" and not isinstance(override.value(), list | dict | None):
        return value if "${" in value else _in_brackets(key, value)
    return value


def _in_brackets(key: str, value: str) -> str:
    """A list of the items of ``value``, or of ``value`` if a backslash at its end would escape the bracket."""
    return f"[{value}]" if parsed(f"{key}=[{value}]") is not None else f"[{literal(value)}]"


def _sweep(key: str, value: str, speller: "_Speller") -> str:
    """The values of a sweep, each spelled."""
    if _SWEEP_FUNCTION.fullmatch(value) and parsed(f"{key}={value}") is not None:
        return value
    # Hydra's grammar has no empty value among several.
    return ",".join(speller.value(piece) or _in_quotes("") for piece in split(value, speller.found))


class _Speller:
    """Spells the values of a key that takes paths or text."""

    def __init__(self, key: str, reading: Reading, known: frozenset[str]) -> None:
        self._key, self._reading, self._known = key, reading, known
        self._is_path = reading.role != "text"

    def found(self, name: str) -> bool:
        """Whether a name, or the path in ``name: path``, is a file that exists."""
        if not self._is_path:
            return False
        return any(exists(each) for each in {name, name.strip(), _expanded(name.strip())})

    def is_structure(self, value: str) -> bool:
        """Whether a value is written as a list or a mapping that the key takes, or is quoted."""
        listed = self._reading.listed and value.startswith("[") and value.endswith("]")
        return listed or self._mapping(value) is not None or _QUOTED.fullmatch(value) is not None

    def value(self, value: str) -> str:
        """A whole value in Hydra's grammar."""
        if self._is_path and exists(value):
            return self._bracketed(literal(value))
        if self._reading.listed and value.startswith("[") and value.endswith("]"):
            inside = value[1:-1]
            pieces = split(inside, self.found) if inside.strip() or exists(inside) else []
            return f"[{','.join(self._item(piece) for piece in pieces)}]"
        mapping = self._mapping(value)
        if mapping is not None:
            return f"{{{','.join(f'{name}: {self._item(path)}' for name, path in mapping)}}}"
        if value == "null" and self._reading.optional:
            return value
        if value == "" and self._reading.role == "text":
            return value
        return self._bracketed(self._text(value))

    def _bracketed(self, item: str) -> str:
        return item if self._reading.single else f"[{item}]"

    def _mapping(self, value: str) -> list[tuple[str, str]] | None:
        """Names and paths of ``{name: path, …}``, or None for another value."""
        if not self._reading.named or not (value.startswith("{") and value.endswith("}")):
            return None
        if not value[1:-1].strip():
            return []
        entries: list[str] = []
        for piece in split(value[1:-1], lambda _: False):
            if entries and ":" not in piece:
                entries[-1] += f",{piece}"
            else:
                entries.append(piece)
        pairs = [(entry.partition(":")[0].strip(), entry.partition(":")[2]) for entry in entries]
        if not all(":" in entry for entry in entries):
            return None
        for name, _ in pairs:
            if not re.fullmatch(r"[A-Za-z_][\w ./+-]*|[1-9]\d*", name, re.A) or name.lower() in _KEYWORDS:
                raise ConfigError(
                    self._key, f"'{name}' cannot be a name", "start it with a letter a-z, as in {name: path}"
                )
        return pairs

    def _item(self, item: str) -> str:
        """An item of a list. Spaces around it are removed, unless a file has them in its name."""
        names = (item, item.removeprefix(" "), item.strip(" \t"))
        found = next((name for name in names if self._is_path and exists(name)), None)
        return self._text(names[-1]) if found is None else literal(found)

    def _text(self, text: str) -> str:
        """Text that names no file."""
        if text == "" and self._is_path:
            raise ConfigError(self._key, "is empty", f"write {self._key}=PATH, without a space after =")
        if self._is_path and len(text) > _MOST_CHARACTERS:
            what = f"has {len(text)} characters in one path: {_shortened(text)}"
            raise ConfigError(self._key, what, f"write {self._key}=[first,second] for several")
        if _QUOTED.fullmatch(text):
            return text
        if self._is_interpolated(text):
            return _in_quotes(text)
        if not self._is_path:
            return literal(text)
        if "\\" in text:
            override = parsed(f"key={text}")
            meant = None if override is None or override.is_sweep_override() else override.value()
            if isinstance(meant, str) and exists(meant):
                return literal(meant)
        return literal(_expanded(text))

    def _is_interpolated(self, text: str) -> bool:
        """Whether each ``${…}`` in a text names a known key or resolver."""
        inner = _INTERPOLATION.findall(text)
        return bool(inner) and len(inner) == text.count("${") and all(map(self._is_known, inner))

    def _is_known(self, reference: str) -> bool:
        resolver, colon, _ = reference.partition(":")
        if colon:
            return OmegaConf.has_resolver(resolver) or resolver in ("hydra", "now")
        return re.split(r"[.\[]", reference)[0] in self._known


def _expanded(text: str) -> str:
    """A path with ``~/`` or ``~user/`` at its start replaced by the home folder."""
    if not text.startswith("~") or "/" not in text:
        return text
    try:
        return str(Path(text).expanduser()) if not text.endswith("/") else f"{Path(text).expanduser()}/"
    except RuntimeError:
        return text


def split(text: str, found: Callable[[str], bool]) -> list[str]:
    """Split at commas: not in quotes, not in brackets, and not in the name of a file that exists.

    A quote counts only where an item starts, and a bracket only if it is closed.

    Args:
        text: Items with commas between them.
        found: Whether an item is a file that exists.

    Example:
        >>> split("it's.wav,'a,b',c (1, 2).wav,[d", lambda _: False)
        ["it's.wav", "'a,b'", 'c (1, 2).wav', '[d']
    """
    parts = _unquoted_parts(text)
    last = _last_parts([rest for _, rest in parts])
    pieces = []
    start = 0
    while start < len(parts):
        most = min(len(parts), start + _MOST_PARTS)
        end = next((end for end in range(most, start, -1) if found(_joined(parts[start:end]))), last[start] + 1)
        pieces.append(_joined(parts[start:end]))
        start = end
    return pieces


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    return ",".join(part for part, _ in parts)


def _unquoted_parts(text: str) -> list[tuple[str, str]]:
    """Parts between commas that are not in a quoted item: each whole, and without the quoted item."""
    parts, start = [], 0
    while start <= len(text):
        quoted = _QUOTED_ITEM.match(text, start)
        end = text.find(",", quoted.end() if quoted else start)
        end = len(text) if end < 0 else end
        rest = f"{quoted[1]}{text[quoted.end() : end]}" if quoted else text[start:end]
        parts.append((text[start:end], rest))
        start = end + 1
    return parts


def _last_parts(parts: Sequence[str]) -> list[int]:
    """For an item that starts at each part, the part in which all its brackets are closed.

    Brackets that are not closed, or not opened, do not count.
    """
    opening = {")": "(", "]": "[", "}": "{"}
    opened: list[tuple[str, int]] = []
    counts = dict.fromkeys("([{", 0)
    last = list(range(len(parts)))
    for number, part in enumerate(parts):
        for character in part:
            if character in counts:
                opened.append((character, number))
                counts[character] += 1
            elif counts.get(opening.get(character, ""), 0):
                while True:
                    bracket, first = opened.pop()
                    counts[bracket] -= 1
                    if bracket == opening[character]:
                        break
                last[first] = number
    for number in reversed(range(len(parts))):
        # Brackets of later parts of the item may be closed later still.
        inner = number + 1
        while inner <= last[number]:
            last[number] = max(last[number], last[inner])
            inner = last[inner] + 1
    return last
