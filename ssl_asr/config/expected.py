"""Checks of plain values against type annotations, and the words for what an annotation allows."""

import math
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import ValidationError

from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import is_file_name, is_system_text, shown
from ssl_asr.types import Expected, IsPath

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_LAX = ConfigDict(arbitrary_types_allowed=True)
# Largest size of a number: that of a seed. Code below would compute, count or allocate with larger numbers in vain.
_MOST = 2**32 - 1
_WORDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
    None: "null",
    dict: "a mapping",
    list: "a list",
}


def check_value(key: str, value: Any, annotation: Any, *, strict: bool = True) -> tuple[Any, list[ConfigError]]:
    """Value as the annotation has it, and an error if the annotation does not allow it.

    Args:
        key: Key of the value, for the error.
        value: Plain data.
        annotation: Type, with `annotated_types` for ranges.
        strict: Convert nothing but whole numbers to floats. Otherwise text is converted to paths, durations, and so on.
    """
    extreme = _extreme(value, names_paths=_names_paths(annotation))
    if extreme is not None:
        return value, [ConfigError(key, f"is {shown(value)}, expected {extreme}")]
    validate = _validator(annotation, strict) if _is_hashable(annotation) else _make_validator(annotation, strict)
    if validate is None:
        return value, []
    try:
        if (value is not True and value is not False) or _takes_bool(annotation):
            return validate(value), []
    except ValidationError:
        pass
    return value, [ConfigError(key, f"is {shown(value)}, expected {describe(annotation)}")]


def _extreme(value: Any, *, names_paths: bool) -> str | None:
    """What is expected in place of a number or text that no setting can have, in a value of any type; or None."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return next((found for part in parts if (found := _extreme(part, names_paths=names_paths)) is not None), None)
    if isinstance(value, str):
        if not is_system_text(value):
            return "text of Unicode characters without NUL"
        return "a path that is not empty and not too long" if names_paths and not is_file_name(value) else None
    is_large = isinstance(value, int | float) and _MOST < abs(value) < math.inf
    return f"a number from -{_MOST:,} to {_MOST:,}" if is_large else None


def _names_paths(annotation: Any) -> bool:
    """Whether texts of an annotation are paths."""
    return isinstance(annotation, IsPath) or any(map(_names_paths, get_args(annotation)))


def _takes_bool(annotation: Any) -> bool:
    """Whether an annotation allows true and false. pydantic takes them for the numbers of a Literal."""
    if get_origin(annotation) is Literal:
        return any(isinstance(value, bool) for value in get_args(annotation))
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation))) or _is_free(annotation)


def _is_free(annotation: Any) -> bool:
    """Whether an annotation is a class of which nothing is known here."""
    return isinstance(annotation, type) and annotation not in _WORDS and not get_args(annotation)


def _is_hashable(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:
        return False
    return True


def _make_validator(annotation: Any, strict: bool) -> Callable[[Any], Any] | None:
    """Validator of an annotation, or None for an annotation that pydantic cannot check."""
    try:
        return TypeAdapter(annotation, config=_STRICT if strict else _LAX).validate_python
    except PydanticSchemaGenerationError:
        return None
    except PydanticUserError:
        # A type that brings a pydantic config of its own, such as a nested dataclass.
        return TypeAdapter(annotation).validate_python


_validator = lru_cache(maxsize=256)(_make_validator)


def describe(annotation: Any) -> str:
    """The values that an annotation allows, in words.

    Example:
        >>> from ssl_asr.types import Dropout
        >>> describe(Dropout | None)
        'a number from 0 to less than 1, or null'
        >>> describe(Literal["mean", "first"])
        "'mean' or 'first'"
    """
    if get_origin(annotation) is Annotated:
        base, *marks = get_args(annotation)
        said = [mark.text for mark in marks if isinstance(mark, Expected)]
        return said[0] if said else f"{describe(base)}{_range(marks)}"
    if get_origin(annotation) in (Union, types.UnionType):
        return _either(annotation)
    if get_origin(annotation) is Literal:
        return listed([repr(value) for value in get_args(annotation)])
    if get_origin(annotation) in (list, tuple) and get_args(annotation):
        return f"a list, each item {describe(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"a mapping to {describe(get_args(annotation)[1])}"
    return _WORDS[annotation] if annotation in _WORDS else str(getattr(annotation, "__name__", annotation))


def listed(words: list[str]) -> str:
    """Alternatives in words: ``a, b or c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _either(annotation: Any) -> str:
    """The alternatives of a union, null last."""
    parts = [part for part in get_args(annotation) if part is not types.NoneType]
    words = list(dict.fromkeys(describe(part) for part in parts))
    optional = len(parts) < len(get_args(annotation))
    return f"{' or '.join(words)}, or null" if optional else " or ".join(words)


def _range(marks: list[Any]) -> str:
    """The limits of a value, to follow its type."""
    low: tuple[str, Any] | None = None
    high: tuple[str, Any] | None = None
    length = ""
    for mark in marks:
        for part in mark if isinstance(mark, Interval | Len) else (mark,):
            match part:
                case Ge(ge=value):
                    low = ("from", value)
                case Gt(gt=value):
                    low = ("greater than", value)
                case Le(le=value):
                    high = ("to", value)
                case Lt(lt=value):
                    high = ("to less than", value)
                case MinLen(min_length=1):
                    length = ", not empty"
                case MinLen(min_length=value):
                    length = f", at least {value} items"
                case MaxLen(max_length=value):
                    length += f", at most {value} items"
    return _limits(low, high) + length


def _limits(low: tuple[str, Any] | None, high: tuple[str, Any] | None) -> str:
    if low is None and high is None:
        return ""
    if low is None:
        assert high is not None
        return f" of {high[1]} or less" if high[0] == "to" else f" less than {high[1]}"
    if high is None:
        return f" of {low[1]} or more" if low[0] == "from" else f" greater than {low[1]}"
    upper = f"{high[0]} {high[1]}"
    return f" {low[0]} {low[1]} {upper}" if low[0] == "from" else f" {low[0]} {low[1]}, up {upper}"
