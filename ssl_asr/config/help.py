"""What ``ssl-asr COMMAND --help`` prints: the command's own keys, from docstrings, annotations and ``conf/``."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from ssl_asr.config.expected import describe
from ssl_asr.config.folders import config_folder, option_names
from ssl_asr.config.schemas import SCHEMAS, Command, annotation_of

_KEY_WIDTH = 28
_ANY_TEXT = ("text", "text, or null")
_FLAGS = {
    "--help": "Show this text.",
    "--cfg job": "Print the config as it will run, and stop.",
    "-m": "Run a sweep: key=a,b,c, or a search space.",
    "-- NAMES": "All words after -- are names, also if they start with a dash.",
    "--config-dir DIR": "Also find options in DIR: DIR/head/mine.yaml is head=mine.",
}


def help_text(name: str, folders: Sequence[Path] = (), width: int | None = None) -> str:
    """The help of a command.

    Args:
        name: Name of the command.
        folders: Folders with further options.
        width: Columns of the text. None takes the terminal's, at most 120.
    """
    columns = width or min(120, shutil.get_terminal_size().columns)
    schema = SCHEMAS[name]
    words = "".join(f" {_word(schema, key)}" for key in getattr(schema, "positional", ()))
    lines = [f"usage: ssl-asr {name}{words} [key=value …]", "", _title(schema), ""]
    lines += [f"  {example}" for example in examples(name)]
    lines += _options(name, schema, folders, columns)
    named = list(_primary(name))
    for section, members in _sections(schema):
        lines += ["", section, *(line for field in members for line in _key(schema, field, named, columns))]
    flags = _short_flags(schema)
    flags |= {flag: text for flag, text in _FLAGS.items() if flag != "--config-dir DIR" or _groups(schema)}
    lines += ["", "Flags", *(line for flag, text in flags.items() for line in _entry(flag, text, columns))]
    return "\n".join(lines)


def _word(schema: type[Command], key: str) -> str:
    """A word without a key, as the usage shows it."""
    field = next(each for each in fields(schema) if each.name == key)
    return f"[{key.upper()} …]" if "list[" in str(field.type) else key.upper()


def _short_flags(schema: type[Command]) -> dict[str, str]:
    """Flags that stand for a key, with their texts."""
    by_key: dict[str, list[str]] = {}
    for flag, key in getattr(schema, "flags", {}).items():
        by_key.setdefault(key, []).append(flag)
    return {f"{', '.join(flags)} {key.upper()}": f"The same as {key}={key.upper()}." for key, flags in by_key.items()}


def _title(schema: type[Command]) -> str:
    return str(inspect.getdoc(schema)).split("\n\n")[0].replace("\n", " ")


def examples(name: str) -> list[str]:
    """The commands in the header of the command's YAML file."""
    header = (config_folder() / f"{name}.yaml").read_text(encoding="utf-8").split("\ndefaults:")[0]
    lines = [line.lstrip("# ").strip() for line in header.splitlines()]
    return [line for line in lines if line.startswith(("python -m ssl_asr", "ssl-asr "))][:3]


def descriptions(schema: type[Command]) -> dict[str, str]:
    """The text of each field, from the ``Attributes`` of the schema and its bases."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        _, _, attributes = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes):
            key, colon, text = entry.strip().partition(": ")
            if colon:
                found[key] = " ".join(text.replace("``", "").split())
    return found


def defaults_of(name: str) -> dict[str, str | None]:
    """The option of each group in the command's defaults, by ``group`` or ``group@package``."""
    entries: Any = _primary(name).get("defaults", [])
    found: dict[str, str | None] = {}
    for entry in entries:
        if isinstance(entry, dict):
            found |= {str(key): option for key, option in entry.items()}
        elif (config_folder() / f"{entry}.yaml").is_file():
            found |= defaults_of(entry)
    return found


def _primary(name: str) -> dict[str, Any]:
    """The command's own YAML file."""
    node: dict[str, Any] = yaml.safe_load((config_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return node


def _groups(schema: type[Command]) -> list[Field[Any]]:
    return [field for field in fields(schema) if "group" in field.metadata]


def _mounts(name: str) -> Iterator[tuple[str, str, str | None]]:
    """Each group of a command: its name, where it is mounted, and its default option."""
    for key, option in defaults_of(name).items():
        group, _, package = key.removeprefix("optional ").partition("@")
        yield group, package, option


def _options(name: str, schema: type[Command], folders: Sequence[Path], columns: int) -> list[str]:
    """The groups of a command with their options."""
    texts = descriptions(schema)
    own = {
        "experiment": "Published recipes, which set any of the keys.",
        "sweep": "Searches over several runs.",
        "debug": "Short runs that look for mistakes.",
        "local": "Settings of this machine, in conf/local/default.yaml.",
    }
    lines: list[str] = []
    for group, package, option in _mounts(name):
        key = f"{group}@{package}" if package else group
        text = texts.get(group, texts.get(package.partition(".")[0], own.get(group, "")))
        lines += _entry(f"{key}={'null' if option is None else option}", text, columns)
        names = option_names(group, folders)
        if names and not package.endswith(".rest"):
            lines += _entry("", ", ".join(names), columns)
    title = "Options (choose with group=option, change a setting with group.setting=value)"
    return ["", title, *lines] if lines else []


def _sections(schema: type[Command]) -> list[tuple[str, list[Field[Any]]]]:
    """The fields that are not options, by the class that first has them: the model, the command's own, the rest."""
    bases: list[Any] = [base for base in schema.__mro__ if base is not object]
    found: dict[str, list[Field[Any]]] = {}
    for field in fields(schema):
        if "group" not in field.metadata:
            first = [base for base in bases if field.name in inspect.get_annotations(base)][-1]
            found.setdefault(first.section, []).append(field)
    order = ["Model", schema.section, *(base.section for base in bases if base.section != "Extensions"), "Extensions"]
    return [(section, found[section]) for section in dict.fromkeys(order) if section in found]


def _key(schema: type[Command], field: Field[Any], named: Sequence[str], columns: int) -> list[str]:
    text = descriptions(schema).get(field.name, "")
    allowed = describe(annotation_of(field))
    shown = text if allowed in _ANY_TEXT else f"{text} [{allowed}]"
    return _entry(f"{field.name}={_default(field, named)}", shown, columns)


def _default(field: Field[Any], named: Sequence[str]) -> str:
    """The default of a field as it is written, or … if it must be given. ``named`` are folders that Hydra names."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return "outputs/…" if field.name in named else "…"
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, list):
        return f"[{','.join(str(each) for each in value)}]"
    if isinstance(value, dict):
        return "{}"
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _entry(key: str, text: str, columns: int) -> list[str]:
    """A key and its text, in two columns."""
    indent = " " * _KEY_WIDTH
    lines = textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent) or [indent]
    if len(key) > _KEY_WIDTH - 4:
        return [f"  {key}", *lines]
    return [f"  {key}".ljust(_KEY_WIDTH) + lines[0][_KEY_WIDTH:], *lines[1:]]
