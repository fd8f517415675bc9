"""From a node with a ``_target_`` to an option object, and back to plain data."""

import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from ssl_asr.config.expected import check_value
from ssl_asr.config.parts import Sides
from ssl_asr.config.schemas import Command
from ssl_asr.errors import ConfigError, UserError, did_you_mean, raise_all
from ssl_asr.textfiles import shown

OWN_PACKAGE = "ssl_asr"
# How OmegaConf writes a mandatory value that is not given.
NOT_GIVEN = "???"
# A remedy with a longer name of a package is of no use.
_LONGEST = 300


@dataclass(frozen=True)
class Call:
    """A class that is not an option dataclass, such as a Lightning callback, with the arguments of its constructor.

    Attributes:
        kind: The class.
        arguments: Arguments of its constructor.
        plain: The arguments as plain data, as the config has them.
    """

    kind: type
    arguments: dict[str, Any]
    plain: dict[str, Any]

    def build(self) -> Any:
        """A new object of the class."""
        return self.kind(**self.arguments)


@dataclass
class Checked:
    """An option and the errors found in its node.

    With errors, ``option`` is an incomplete object: it has the fields that are right, and raises AttributeError for
    the others. It is only good for looking for more errors.
    """

    option: Any = None
    errors: list[ConfigError] = field(default_factory=list)


def check_installed(extensions: Sequence[str]) -> list[ConfigError]:
    """An error for each extension that is not an installed package."""
    errors = []
    for package in extensions:
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        if found is None:
            what = f"package '{package}' is not installed"
            errors.append(ConfigError("extensions", what, "install it, or check its spelling"))
    return errors


def check_extensions(stored: Sequence[str], named: Sequence[str], where: str) -> None:
    """Refuse a checkpoint with classes of packages that the user does not trust.

    Args:
        stored: Extensions that the checkpoint's config used.
        named: Extensions that the user names.
        where: Path of the checkpoint, for the error.

    Raises:
        ConfigError: A stored extension is not named, or is not installed.
    """
    unnamed = [package for package in stored if package not in named]
    if unnamed:
        what = f"uses classes of {', '.join(unnamed)}, which are only run if you name the package"
        raise ConfigError(where, what, f"if you trust it, add extensions=[{','.join([*named, *unnamed])}]")
    raise_all(check_installed(named))


def load_class(target: str, key: str, *, extensions: Sequence[str] = ()) -> type:
    """The class at a path such as ``ssl_asr.models.heads.LinearHead``.

    A config may come with a checkpoint. So only classes that are defined in this package, or in packages that the user
    names, are loaded.

    Args:
        target: ``module.Class``.
        key: Config key of the node, for the error.
        extensions: Packages that the user trusts.

    Raises:
        ConfigError: The package is not trusted, or there is no such class.
    """
    where = f"{key}._target_"
    module_name, _, name = str(target).rpartition(".")
    if not _is_trusted(module_name, extensions):
        package = module_name.partition(".")[0] or str(target)
        what = f"class {shown(str(target))} is not in {' or '.join((OWN_PACKAGE, *extensions))}"
        named = ",".join((*extensions, package))
        remedy = f"if you trust the package, add extensions=[{named}]" if package.isidentifier() else "name a class"
        raise ConfigError(where, what, remedy if len(remedy) <= _LONGEST else "name a class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(where, f"{module_name} needs {error.name}", f"install {error.name}") from None
        raise ConfigError(where, f"no class '{target}': there is no such module", "check its spelling") from None
    except ImportError as error:
        raise ConfigError(where, f"{module_name} cannot be imported: {error}", "repair the package") from None
    found = getattr(module, name, None)
    if not isinstance(found, type) or not _is_trusted(found.__module__, extensions):
        known = [n for n, kind in vars(module).items() if isinstance(kind, type) and kind.__module__ == module_name]
        raise ConfigError(where, f"no class '{name}' in {module_name}", did_you_mean(name, known))
    return found


def _is_trusted(module: str, extensions: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in (OWN_PACKAGE, *extensions))


def build_option(node: dict[str, Any], key: str, *, extensions: Sequence[str] = ()) -> Any:
    """The option of a node: its frozen dataclass, every value checked.

    Args:
        node: ``{"_target_": "module.Class", **fields}``.
        key: Config key of the node, for errors.
        extensions: Packages besides ssl_asr that the user trusts.

    Raises:
        ConfigError, UserErrors: Unknown keys, missing keys, and values that the annotations do not allow, all at once.
    """
    checked = check_option(node, key, extensions=extensions)
    raise_all(checked.errors)
    return checked.option


def check_option(node: Any, key: str, *, extensions: Sequence[str] = (), calls: bool = False) -> Checked:
    """Like `build_option`, but returns the errors.

    Args:
        node: As for `build_option`.
        key: As for `build_option`.
        extensions: As for `build_option`.
        calls: Accept any class, as a `Call`. Otherwise only dataclasses.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return Checked(errors=[ConfigError(key, "has no _target_", f"choose an option: {key}=…")])
    try:
        kind = load_class(node["_target_"], key, extensions=extensions)
    except ConfigError as error:
        return Checked(errors=[error])
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    if is_dataclass(kind):
        return _checked_dataclass(kind, given, key)
    if calls:
        return _checked_call(kind, given, key)
    what = f"{kind.__name__} is not a dataclass, and options of this group are"
    return Checked(errors=[ConfigError(f"{key}._target_", what, "write @dataclass(frozen=True, kw_only=True)")])


def _unknown(name: str, kind: type, known: list[str], key: str) -> ConfigError:
    return ConfigError(f"{key}.{name}", f"unknown key of {kind.__name__}", did_you_mean(name, known))


def _missing(name: str, key: str) -> ConfigError:
    return ConfigError(f"{key}.{name}", "is missing", f"give {key}.{name}=…")


def _checked_dataclass(kind: type, given: dict[str, Any], key: str) -> Checked:
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name: f for f in fields(kind) if f.init}
    errors = [_unknown(name, kind, list(known), key) for name in given if name not in known]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in known and value != NOT_GIVEN:
            values[name], found = check_value(f"{key}.{name}", value, hints[name])
            errors += found
            if found:
                del values[name]
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    errors += [_missing(name, key) for name in required if name not in given]
    if errors or any(value == NOT_GIVEN for value in given.values()):
        return Checked(_incomplete(kind, values), errors)
    try:
        return Checked(kind(**values))
    except UserError as error:
        return Checked(_incomplete(kind, values), [ConfigError(f"{key}.{error.where}", error.what, error.remedy)])


def _incomplete(kind: type, values: dict[str, Any]) -> Any:
    """An object with only some of its fields, for further checks."""
    option: object = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(option, name, value)
    return option


def _checked_call(kind: type, given: dict[str, Any], key: str) -> Checked:
    parameters = inspect.signature(kind).parameters
    try:
        hints = get_type_hints(inspect.getattr_static(kind, "__init__"), include_extras=True)
    except (NameError, TypeError):
        hints = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    errors = [] if takes_any else [_unknown(name, kind, list(named), key) for name in given if name not in named]
    values = dict(given)
    for name in given.keys() & hints.keys():
        values[name], found = check_value(f"{key}.{name}", given[name], hints[name], strict=False)
        errors += found
    required = [name for name, p in named.items() if p.default is p.empty]
    errors += [_missing(name, key) for name in required if name not in given]
    return Checked(Call(kind, values, given), errors)


def plain(config: Command) -> dict[str, Any]:
    """The config as plain data: what is logged, saved as config.yaml and kept in checkpoints."""
    return {f.name: _plain(getattr(config, f.name), option="group" in f.metadata) for f in fields(config)}


def plain_option(option: Any) -> dict[str, Any]:
    """The node of an option: ``{"_target_": "module.Class", **fields}``."""
    if isinstance(option, Call):
        return {"_target_": _path(option.kind), **option.plain}
    values = {f.name: _plain(getattr(option, f.name)) for f in fields(option) if f.init}
    return {"_target_": _path(type(option)), **values}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any, *, option: bool = False) -> Any:
    """Plain data of a field. ``option`` says whether the value is an option, or a mapping to options."""
    if isinstance(value, Sides):
        return {side: plain_option(each) for side, each in value.items()}
    if isinstance(value, dict):
        return {str(name): plain_option(each) if option else _plain(each) for name, each in value.items()}
    if option and value is not None:
        return plain_option(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def options_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Each option of a config with its key, such as ``optimizers.rest``."""
    for f in fields(config):
        value = getattr(config, f.name, None)
        if "group" not in f.metadata or value is None:
            continue
        if isinstance(value, Sides):
            yield from ((f"{f.name}.{side}", option) for side, option in value.items())
        elif isinstance(value, dict):
            yield from ((f"{f.name}.{name}", option) for name, option in value.items())
        else:
            yield f.name, value
