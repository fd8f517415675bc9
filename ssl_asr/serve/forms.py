"""The form of a request: which fields there are, and which values they take."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ssl_asr.errors import ConfigError, did_you_mean
from ssl_asr.serve.models import Task

Value = TypeVar("Value")

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("segment", "word")
INCLUDE = ("srt", "vtt")
"""Formats of subtitles that a JSON reply can also have, as keys."""

_FIELDS = (
    *("file", "model", "language", "prompt", "response_format", "temperature", "stream", "chunking_strategy"),
    *("timestamp_granularities", "include"),
)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True, kw_only=True)
class TranscriptionForm:
    """The fields of a request besides the file. See OpenAI's audio API for the fields.

    Attributes:
        model: Name of the model. Empty for the first model.
        task: ``transcribe`` or ``translate``, by the address of the request.
        language, prompt: None if they are not given.
        response_format: One of `FORMATS`.
        granularities: What ``verbose_json`` has times of: segments, words, or both.
        include: Subtitles that a JSON reply also has.
        stream: Whether segments are sent as server-sent events.
    """

    model: str
    task: Task
    language: str | None
    prompt: str | None
    response_format: str
    granularities: tuple[str, ...]
    include: tuple[str, ...]
    stream: bool

    @property
    def words(self) -> bool:
        """Whether the reply needs the times of words."""
        return self.response_format in ("srt", "vtt", "verbose_json") or bool(self.include)


def parse_form(fields: Mapping[str, Sequence[str]], task: Task) -> TranscriptionForm:
    """The form from its fields, of which each may be given several times. Lists may have ``[]`` after their names.

    Raises:
        ConfigError: A field is unknown, or has a value that this server does not take.
    """
    given: dict[str, list[str]] = {}
    for name, values in fields.items():
        plain = name.removesuffix("[]")
        if plain not in _FIELDS:
            remedy = did_you_mean(plain, _FIELDS)
            raise ConfigError(name, "this server does not have this field", f"leave it out; {remedy}")
        given.setdefault(plain, []).extend(values)
    _check_temperature(_single(given, "temperature"))
    if _single(given, "chunking_strategy") not in ("", "auto"):
        raise ConfigError("chunking_strategy", "takes auto only", "leave it out")
    response_format = _single(given, "response_format") or "json"
    _check("response_format", [response_format], FORMATS)
    granularities = _several(given, "timestamp_granularities", GRANULARITIES)
    include = _several(given, "include", INCLUDE)
    is_json = response_format in ("json", "verbose_json")
    if granularities and response_format != "verbose_json":
        what = f"goes with response_format=verbose_json, not with {response_format}"
        raise ConfigError("timestamp_granularities[]", what, "leave it out")
    if include and not is_json:
        raise ConfigError("include[]", f"goes with JSON, not with {response_format}", "leave it out")
    stream = _boolean("stream", _single(given, "stream"))
    if stream and not is_json:
        what = f"is true, and response_format={response_format} is one text"
        raise ConfigError("stream", what, "use response_format=json or verbose_json")
    return TranscriptionForm(
        model=_single(given, "model"),
        task=task,
        language=_single(given, "language") or None,
        prompt=_single(given, "prompt").strip() or None,
        response_format=response_format,
        granularities=tuple(granularities) or ("segment",),
        include=tuple(include),
        stream=stream,
    )


def _single(given: Mapping[str, Sequence[str]], name: str) -> str:
    """The value of a field, or an empty text if it is not given."""
    values = given.get(name, [])
    if len(values) > 1:
        raise ConfigError(name, f"is given {len(values)} times", "give it once")
    return values[0] if values else ""


def _several(given: Mapping[str, Sequence[str]], name: str, known: Sequence[str]) -> list[str]:
    values = list(dict.fromkeys(part.strip() for value in given.get(name, []) for part in value.split(",")))
    _check(f"{name}[]", values, known)
    return values


def _check(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise ConfigError(name, f"'{value[:40]}' is not a value of this field", did_you_mean(value, known))


def _boolean(name: str, text: str) -> bool:
    return _parsed(name, text, lambda value: _BOOLEANS[value.lower()], "true or false")


def _check_temperature(text: str) -> None:
    """Only 0 is taken, the default: the decoder is an option of the server."""
    temperature = _parsed("temperature", text or "0", float, "a number from 0 to 1")
    if temperature != 0 or not math.isfinite(temperature):
        what = f"is {text[:20]}, and the decoder of this server is fixed"
        raise ConfigError("temperature", what, "use 0, or leave it out")


def _parsed(name: str, text: str, parse: Callable[[str], Value], expected: str) -> Value:
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise ConfigError(name, f"is '{text[:40]}', expected {expected}", "") from None
