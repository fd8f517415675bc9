"""Convert a composed config to the typed config of a command, and check every value and combination of values."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field, fields
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ssl_asr.config.expected import check_value, listed
from ssl_asr.config.folders import config_folder
from ssl_asr.config.nodes import prepare, unknown_side
from ssl_asr.config.options import (
    NOT_GIVEN,
    OWN_PACKAGE,
    Call,
    Checked,
    check_installed,
    check_option,
    load_class,
    options_of,
)
from ssl_asr.config.parts import Sides
from ssl_asr.config.schemas import SCHEMAS, Command, TrainConfig, annotation_of
from ssl_asr.errors import ConfigError, UserError, did_you_mean, raise_all
from ssl_asr.textfiles import shown

# Stands for an option with errors. A check of combinations that reads it raises AttributeError, which is ignored.
_PLACEHOLDER = object()
_SIDES = "an option for the encoder and one for the rest"


def resolve(cfg: DictConfig) -> TrainConfig:
    """The checked training config. Options are objects, and ``freeze`` is replaced by a freeze policy.

    Raises:
        ConfigError, UserErrors: All errors at once, each with its key and a remedy: unknown keys, missing values,
            values that are not allowed, and values that cannot be combined.
    """
    return cast(TrainConfig, resolve_command("train", cfg))


def resolve_command(name: str, cfg: DictConfig) -> Command:
    """The typed config of a command. See `resolve`.

    Args:
        name: Name of the command.
        cfg: Config composed by Hydra.

    Raises:
        ConfigError, UserErrors: All errors at once.
    """
    node, missing = prepare(name, cfg)
    errors: list[UserError] = [*missing]
    schema = SCHEMAS[name]
    named = node.get("extensions")
    # A value of another type is an error below.
    extensions = [package for package in named if isinstance(package, str)] if isinstance(named, list) else []
    errors += check_installed(extensions)
    values: dict[str, Any] = {}
    known = [field.name for field in fields(schema)]
    errors += [ConfigError(key, "unknown key", did_you_mean(key, known)) for key in node if key not in known]
    for field in fields(schema):
        checked = _checked_field(field, node.get(field.name, NOT_GIVEN), extensions)
        errors += checked.errors
        values[field.name] = checked.option
    config = schema(**values)
    errors += _conflicts(config, complete=not errors)
    raise_all(_without_duplicates(errors))
    return config


def _checked_field(field: Field[Any], value: Any, extensions: Sequence[str]) -> Checked:
    """The value of a field, and its errors.

    A field without a group is a plain value. A field with a group is an option, ``dict[...]`` of options by name, or
    ``Sides[...]`` with an option for the encoder and one for the rest.
    """
    if "group" not in field.metadata:
        if value == NOT_GIVEN:
            return Checked(value)
        checked = Checked(*check_value(field.name, value, annotation_of(field)))
        return Checked(_PLACEHOLDER, checked.errors) if checked.errors else checked
    if value is None and field.default is None:
        return Checked(None)
    if value is None or value == NOT_GIVEN:
        return Checked(_PLACEHOLDER, [ConfigError(field.name, "is missing", f"choose an option: {field.name}=…")])
    kind = field.metadata["kind"]
    if str(field.type).startswith("dict["):
        return _checked_named(field.name, value, extensions)
    if not str(field.type).startswith("Sides["):
        return _checked_option(value, field.name, kind, extensions)
    if not isinstance(value, dict):
        return Checked(_PLACEHOLDER, [ConfigError(field.name, f"is {shown(value)}, expected {_SIDES}")])
    sides = {
        side: _checked_option(value.get(side), f"{field.name}.{side}", kind, extensions) for side in ("encoder", "rest")
    }
    errors = [error for checked in sides.values() for error in checked.errors]
    errors += [unknown_side(field.name, side) for side in value if side not in sides]
    return Checked(Sides(**{side: checked.option for side, checked in sides.items()}), errors)


def _checked_named(name: str, value: Any, extensions: Sequence[str]) -> Checked:
    """Options by name. A class that is not an option is converted to a `ssl_asr.config.options.Call`."""
    if not isinstance(value, dict):
        return Checked({}, [ConfigError(name, f"is {shown(value)}, expected a mapping of options by name")])
    found = {
        each: check_option(node, f"{name}.{each}", extensions=extensions, calls=True) for each, node in value.items()
    }
    errors = [error for checked in found.values() for error in checked.errors]
    errors += [
        ConfigError(f"{name}.{each}", "is not a callback", "name a Lightning Callback, or an option with build()")
        for each, checked in found.items()
        if checked.option is not None and not checked.errors and not _builds_callback(checked.option)
    ]
    return Checked({each: checked.option for each, checked in found.items()}, errors)


def _builds_callback(option: Any) -> bool:
    """Whether an option is a `Call` of a Lightning Callback, or has a ``build`` method without arguments."""
    if isinstance(option, Call):
        # By name, since Lightning may not be imported.
        return any(kind.__name__ == "Callback" and "lightning" in kind.__module__ for kind in option.kind.__mro__)
    build = getattr(option, "build", None)
    return build is not None and all(p.default is not p.empty for p in inspect.signature(build).parameters.values())


def _checked_option(node: Any, key: str, kind: str, extensions: Sequence[str]) -> Checked:
    checked = check_option(node, key, extensions=extensions)
    if checked.option is not None and kind:
        checked.errors += _wrong_type(checked.option, key, load_class(kind, key))
    return checked if checked.option is not None else Checked(_PLACEHOLDER, checked.errors)


def _wrong_type(option: Any, key: str, kind: type) -> Iterator[ConfigError]:
    """An error if an option does not have the type of its group. A Protocol is checked by its public members."""
    if getattr(kind, "_is_protocol", False):
        # A dataclass field without a default is not an attribute of the class.
        fits = all(hasattr(type(option), name) for name in _members(kind) if name not in _fields_of(option))
    else:
        fits = isinstance(option, kind)
    if not fits:
        what = f"{type(option).__name__} does not fit here, expected a {kind.__name__}"
        yield ConfigError(key, what, f"choose another option: {key}=…")


def _members(protocol: type) -> set[str]:
    """Names of the public members of a Protocol."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*vars(base), *inspect.get_annotations(base))}
    return {name for name in names if not name.startswith("_")}


def _fields_of(option: Any) -> set[str]:
    return {f.name for f in fields(option)}


def _conflicts(config: Command, *, complete: bool) -> list[UserError]:
    """Values that cannot be combined. If the config is not ``complete``, checks of invalid values are skipped."""
    errors: list[UserError] = []
    checks: list[Callable[[], Iterable[UserError]]] = [partial(_wrong_task, config)]
    if hasattr(config, "conflicts"):
        checks.append(config.conflicts)
    checks += [partial(option.conflicts, config) for _, option in options_of(config) if hasattr(option, "conflicts")]
    for check in checks:
        try:
            errors.extend(check())
        except (AttributeError, TypeError):
            # The check read a missing or invalid value, which is already reported.
            if complete:
                raise
    return errors


def _wrong_task(config: Command) -> Iterator[ConfigError]:
    """An error for each option that does not support the task."""
    if not isinstance(config, TrainConfig):
        return
    task = config.task.name
    for key, option in options_of(config):
        tasks = getattr(option, "tasks", None)
        if tasks is not None and task not in tasks:
            what = f"{type(option).__name__} does not go with task={task}"
            yield ConfigError(key, what, _options_for(task, key))


def _options_for(task: str, key: str) -> str:
    """The remedy: the options of a group that support the task."""
    names = []
    for path in sorted((config_folder() / key).glob("*.yaml")):
        node: Any = OmegaConf.load(path)
        target = str(node.get("_target_", ""))
        if target.startswith(f"{OWN_PACKAGE}.") and task in getattr(load_class(target, key), "tasks", (task,)):
            names.append(path.stem)
    return f"use {key}={listed(names)}" if names else f"choose another {key}, or another task"


def _without_duplicates(errors: Sequence[UserError]) -> list[UserError]:
    return list({str(error): error for error in errors}.values())
