"""Check config nodes against the constructors they name, without importing them.

A node's ``_target_`` is read as source: its keyword parameters (or dataclass fields) and their annotations
say which keys there are and of what type. So a typo is found in milliseconds, before torch is loaded, and
the constructor remains the only place that says what a key is.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError, did_you_mean

_ALLOWED = "ssl_asr."
# How OmegaConf writes a value that must still be given; reported where the whole config is read.
MISSING = "???"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key a target takes: its annotation, and whether it must be given."""

    annotation: ast.expr
    required: bool


@lru_cache(maxsize=64)
def _module_tree(module: str) -> ast.Module:
    root = Path(__file__).parent.parent
    path = root.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _aliases(tree: ast.Module) -> dict[str, ast.expr]:
    """Type aliases a module defines, or imports from another module of this package."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ALLOWED):
            theirs = _own_aliases(_module_tree(str(node.module)))
            found |= {alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return found | _own_aliases(tree)


def _own_aliases(tree: ast.Module) -> dict[str, ast.expr]:
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in assigned for target in node.targets if isinstance(target, ast.Name)}


def signature(target: str, key: str) -> tuple[dict[str, Parameter], dict[str, ast.expr]]:
    """The parameters of a dataclass of this package, and the type aliases of its module.

    Raises:
        ConfigError: there is no such class here. Other packages' objects are not built from configs: a
            config may come with a checkpoint, and must not be able to call whatever it likes.
    """
    module, _, name = target.rpartition(".")
    if not target.startswith(_ALLOWED) or importlib.util.find_spec(module) is None:
        raise ConfigError(f"{key}._target_", f"no class '{target}'", "targets are classes of ssl_asr")
    found = _class_fields(module, name)
    if found is None:
        raise ConfigError(f"{key}._target_", f"no class '{name}' in {module}", "check the spelling")
    return found


def _class_fields(module: str, name: str) -> tuple[dict[str, Parameter], dict[str, ast.expr]] | None:
    """The fields of a dataclass, those of its bases in this package first, and the type aliases they use."""
    tree = _module_tree(module)
    imported = {
        alias.name: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ALLOWED)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields: dict[str, Parameter] = {}
            aliases: dict[str, ast.expr] = {}
            for base in node.bases:
                if isinstance(base, ast.Name):
                    inherited = _class_fields(imported.get(base.id, module), base.id)
                    if inherited is not None:
                        fields, aliases = fields | inherited[0], aliases | inherited[1]
            fields |= {
                item.target.id: Parameter(item.annotation, item.value is None)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            return fields, aliases | _aliases(tree)
    return None


def _matches(value: Any, annotation: ast.expr, aliases: dict[str, ast.expr]) -> bool:
    if isinstance(annotation, ast.BinOp):
        return _matches(value, annotation.left, aliases) or _matches(value, annotation.right, aliases)
    if isinstance(annotation, ast.Constant):
        return bool(value is annotation.value)
    if isinstance(annotation, ast.Name):
        if annotation.id in aliases:
            return _matches(value, aliases[annotation.id], aliases)
        return _is_plain(value, annotation.id)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        return _is_generic(value, annotation.value.id, annotation.slice, aliases)
    return True


def _is_plain(value: Any, name: str) -> bool:
    if name == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {"str": str, "bool": bool, "dict": dict, "list": list}.get(name, object))


def _is_generic(value: Any, name: str, inner: ast.expr, aliases: dict[str, ast.expr]) -> bool:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return any(isinstance(part, ast.Constant) and value == part.value for part in parts)
    if name == "list":
        return isinstance(value, list) and all(_matches(item, parts[0], aliases) for item in value)
    if name == "dict":
        return isinstance(value, dict) and all(_matches(item, parts[1], aliases) for item in value.values())
    return True


def _spelt(annotation: ast.expr, aliases: dict[str, ast.expr]) -> str:
    if isinstance(annotation, ast.Name) and annotation.id in aliases:
        return _spelt(aliases[annotation.id], aliases)
    if isinstance(annotation, ast.BinOp):
        return f"{_spelt(annotation.left, aliases)} or {_spelt(annotation.right, aliases)}"
    text = ast.unparse(annotation)
    return "null" if text == "None" else text.removeprefix("Literal[").removesuffix("]") if "Literal" in text else text


def check_node(node: dict[str, Any], key: str) -> list[ConfigError]:
    """Every mistake of a config node with a ``_target_``: keys unknown or missing, values of a wrong type."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return [ConfigError(key, "has no _target_", f"choose an option: {key}=…")]
    try:
        parameters, aliases = signature(target, key)
    except ConfigError as error:
        return [error]
    errors = []
    for name, value in node.items():
        if name == "_target_" or value == MISSING:
            continue
        if name not in parameters:
            what = f"unknown key of {target.rpartition('.')[2]}"
            errors.append(ConfigError(f"{key}.{name}", what, did_you_mean(name, list(parameters))))
        elif not _matches(value, parameters[name].annotation, aliases):
            expected = _spelt(parameters[name].annotation, aliases)
            errors.append(ConfigError(f"{key}.{name}", f"is {value!r}", f"it should be {expected}"))
    missing = [name for name, p in parameters.items() if p.required and name not in node]
    errors += [ConfigError(f"{key}.{name}", "is missing", "give it a value") for name in missing]
    return errors
