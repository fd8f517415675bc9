"""Completion for bash: commands, keys, options of groups and their settings."""

import itertools
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from ssl_asr.config.folders import config_folder, option_names
from ssl_asr.config.help import defaults_of
from ssl_asr.config.schemas import SCHEMAS, annotation_of, known_keys

# bash splits words at = and :, so only the part after the last of them is replaced.
BASH = r"""# Completion of ssl-asr. Add this line to ~/.bashrc:  eval "$(ssl-asr --completion bash)"
_ssl_asr() {
    local line="${COMP_LINE:0:COMP_POINT}" program=(ssl-asr)
    if [[ "$1" != *ssl-asr ]]; then
        [[ "$line" == *" -m ssl_asr"* ]] || return 0
        program=("$1" -m ssl_asr)
    fi
    local word="${line##* }"
    local start="${word%"${word##*[=:]}"}"
    mapfile -t COMPREPLY < <("${program[@]}" --complete "$line" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$start"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    return 0
}
complete -o default -o bashdefault -F _ssl_asr ssl-asr python python3
"""
_FLAGS = ("--help", "--cfg", "--config-dir", "--multirun")


def complete(line: str, commands: list[str]) -> list[str]:
    """Words that the last word of a command line may become.

    Args:
        line: The command line up to the cursor.
        commands: Names of the commands.

    Example:
        >>> complete("ssl-asr train head=l", ["train"])
        ['head=linear']
    """
    words = _words(line)
    last = words.pop() if words and not line.endswith(" ") else ""
    name = next((word for word in words if word in commands), None)
    if any(word == "ssl_asr.train" for word in words):
        name = "train"
    if name is None:
        return [command for command in commands if command.startswith(last)]
    if last.startswith("-"):
        return [flag for flag in (*_FLAGS, *getattr(SCHEMAS[name], "flags", {})) if flag.startswith(last)]
    folders = [Path(after) for word, after in itertools.pairwise(words) if word == "--config-dir"]
    key, equals, value = last.partition("=")
    if equals:
        return _values(name, key, value, folders)
    return _keys(name, key, words)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _values(name: str, key: str, value: str, folders: list[Path]) -> list[str]:
    """Values of a key: options of a group, or the choices of its type."""
    start, _, last = value.rpartition(",")
    before = f"{key}={start}," if start else f"{key}="
    group = key.partition("@")[0]
    known = option_names(group, folders) or _choices(name, key)
    return [f"{before}{each}" for each in known if each.startswith(last)]


def _choices(name: str, key: str) -> list[str]:
    field = next((f for f in fields(SCHEMAS[name]) if f.name == key and "group" not in f.metadata), None)
    return [] if field is None else _literals(annotation_of(field))


def _literals(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _literals(part)]


def _keys(name: str, start: str, words: list[str]) -> list[str]:
    """Keys that begin like this: top-level keys and groups, then the settings of a node."""
    groups = {key.removeprefix("optional "): option for key, option in defaults_of(name).items()}
    if "." in start:
        return _settings(start, groups, words)
    keys = {*known_keys(name), *groups} - {"optimizers", "schedulers"}
    nodes = [f"{each}." for each in ("optimizers", "schedulers") if each in known_keys(name)]
    return sorted(each for each in [*(f"{key}=" for key in keys), *nodes] if each.startswith(start))


def _settings(start: str, groups: dict[str, str | None], words: list[str]) -> list[str]:
    """Settings of the option that is chosen."""
    node, _, setting = start.rpartition(".")
    mounted = {key.partition("@")[2] or key: (key, option) for key, option in groups.items()}
    if node in ("optimizers", "schedulers"):
        return [f"{node}.{side}." for side in ("encoder", "rest") if side.startswith(setting)]
    if node not in mounted:
        return []
    key, option = mounted[node]
    chosen = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    names = _setting_names(key.partition("@")[0], chosen[-1] if chosen else option)
    return [f"{node}.{each}=" for each in names if each.startswith(setting)]


def _setting_names(group: str, option: str | None) -> list[str]:
    """Settings in an option's file and in the file that it starts from."""
    path = config_folder() / group / f"{option}.yaml"
    if not path.is_file():
        return []
    node: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    bases = [base for base in node.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    own = node.get(group, node)
    names = [key for key in own if key != "_target_"]
    for base in bases:
        names += [key for key in _setting_names(group, base.partition("@")[0]) if key not in names]
    return names
