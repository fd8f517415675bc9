"""Configs as plain data: where they are read from, and what is folded before options are built. Imports no torch."""

from dataclasses import MISSING, Field, asdict, fields, make_dataclass
from dataclasses import field as new_field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as NOT_GIVEN
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_asr.config.folders import config_folder
from ssl_asr.config.literals import escaped
from ssl_asr.config.run_folder import is_first
from ssl_asr.config.schemas import SCHEMAS, annotation_of
from ssl_asr.console import notify
from ssl_asr.errors import ConfigError, did_you_mean
from ssl_asr.textfiles import is_file_name, shown, written_whole

# OmegaConf's messages may have the path of a deep node.
_MOST_CHARACTERS = 300
_POLICIES = "ssl_asr.models.freezing"
# Policies that `freeze` or a backbone's recommendation stands for.
_FOLDED = {
    "none": {"_target_": f"{_POLICIES}.TrainAll"},
    "feature_encoder": {"_target_": f"{_POLICIES}.FreezeFeatureEncoder"},
    "encoder": {"_target_": f"{_POLICIES}.FreezeEncoder"},
}
_AUTO = {"name": "auto"}
# Keys of earlier versions, and what to write now.
RENAMED = {
    "optimizers.pretrained": "optimizers.encoder",
    "optimizers.new": "optimizers.rest",
    "schedulers.pretrained": "schedulers.encoder",
    "schedulers.new": "schedulers.rest",
    "features": "state_cache",
}


# Schemas as Hydra wants them -----------------------------------------------------------------------------------------


def _simple(annotation: Any) -> Any:
    """The type of a field in OmegaConf's terms. What OmegaConf has no type for is Any, and checked later."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _simple(inner[0])
    if origin is Literal:
        return str if all(isinstance(value, str) for value in inner) else Any
    if origin in (Union, UnionType):
        parts = [part for part in inner if part is not NoneType]
        first = _simple(parts[0])
        return first | None if len(parts) == 1 and len(inner) == 2 and first is not Any else Any
    if origin is list:
        return list[_simple(inner[0])]  # type: ignore[misc]
    return Any if origin is dict else annotation


def _hydra_schema(schema: type, parent: type | None) -> type:
    """A dataclass for Hydra: the fields of a command, options as Any.

    Args:
        schema: Config class of the command.
        parent: The dataclass of the command whose config ``schema`` extends, or None. A config of ``parent`` can become
            one of the result, and keeps its values.
    """
    inherited = {f.name for f in fields(parent)} if parent is not None else set()
    made: list[tuple[str, Any, Field[Any]]] = []
    for field in fields(schema):
        kind = Any if "group" in field.metadata else _simple(annotation_of(field))
        own: Any = new_field(default=NOT_GIVEN) if field.name in inherited else _copy_default(field, NOT_GIVEN)
        made.append((field.name, kind, own))
    return make_dataclass(schema.__name__, made, bases=() if parent is None else (parent,), kw_only=True)


def _copy_default(field: Field[Any], missing: Any) -> Any:
    if field.default_factory is dict:
        # Hydra would accept no new names in an empty dict.
        return new_field(default=None)
    if field.default_factory is not MISSING:
        return new_field(default_factory=field.default_factory)
    return new_field(default=missing if field.default is MISSING else field.default)


def register_schemas() -> None:
    """Register the schema of every command with Hydra, as ``NAME_schema``."""
    store, made = ConfigStore.instance(), dict[type, type]()
    for name, schema in SCHEMAS.items():
        made[schema] = _hydra_schema(schema, made.get(schema.__bases__[0]))
        store.store(name=f"{name}_schema", node=made[schema])


# From a composed config to plain data --------------------------------------------------------------------------------


# Names that results use themselves: other splits, and the record of the run.
_RESERVED = {"data.test": {"train", "dev", "run"}, "manifest": {"run"}}


def named_manifests(value: Any, key: str, single: str = "test") -> dict[str, str]:
    """Manifests by name, from a path (named ``single``), a list of paths (by folder and file) or names to paths.

    Raises:
        ConfigError: It is none of these, two of a list come to the same name, or a name is reserved.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {single: value}
    if isinstance(value, list) and all(isinstance(path, str) for path in value):
        named = {f"{Path(path).resolve().parent.name}_{Path(path).stem}": path for path in value}
        if len(named) == len(value):
            return named
        files = [Path(path).resolve() for path in value]
        twice = next((path for path, file in zip(value, files, strict=True) if files.count(file) > 1), None)
        if twice is not None:
            raise ConfigError(key, f"has {twice} twice", "name each manifest once")
        what = "has several manifests of one name, from folders of one name"
        raise ConfigError(key, what, f"name them: {key}={{one: PATH, other: PATH}}")
    if isinstance(value, dict) and all(isinstance(path, str) for path in value.values()):
        taken = sorted({str(name) for name in value} & _RESERVED.get(key, set()))
        if taken:
            raise ConfigError(key, f"names a manifest '{taken[0]}', which has another meaning", "choose another name")
        return {str(name): path for name, path in value.items()}
    raise ConfigError(key, f"is {shown(value)}, expected a path, a list of paths, or {{name: path, …}}")


def fold_freeze(config: dict[str, Any]) -> dict[str, Any]:
    """The node of the freeze policy that ``freeze``, ``freeze_policy`` and the backbone's recommendation come to.

    ``freeze: false`` trains every weight whatever the policy says. A named policy is kept as it is. With the policy
    ``auto``, ``freeze: true`` freezes the whole encoder, and ``freeze: null`` takes the backbone's recommendation.
    """
    freeze, policy = config["freeze"], config["freeze_policy"]
    if freeze is False:
        if isinstance(policy, dict) and policy not in (_AUTO, _FOLDED["none"]) and is_first():
            name = str(policy.get("_target_", policy)).rpartition(".")[2]
            notify(
                f"freeze=false trains every weight, so freeze_policy={name} has no effect. Leave out freeze to use it."
            )
        return _FOLDED["none"]
    if policy != _AUTO:
        folded: dict[str, Any] = policy
        return folded
    if freeze is True:
        return _FOLDED["encoder"]
    # A wrong recommendation is an error of the backbone's node.
    backbone = config["backbone"] if isinstance(config["backbone"], dict) else {}
    return _FOLDED.get(str(backbone.get("recommended_freeze")), _FOLDED["none"])


def prepare(name: str, cfg: DictConfig) -> tuple[dict[str, Any], list[ConfigError]]:
    """The config of a command as plain data that will run, before its values are checked.

    Interpolations are resolved, ``freeze`` is folded into the policy, manifests have names, and ``decoder_file`` is
    read.

    Raises:
        ConfigError: An interpolation leads nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        composed = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or "config"), str(error.msg or error).splitlines()[0]) from None
    assert isinstance(composed, dict)
    errors = [ConfigError(key, "is missing", f"give {key}=…") for key in missing]
    config = {str(key): value for key, value in composed.items()}
    if name in ("train", "doctor", "plan"):
        config["freeze_policy"] = fold_freeze(config)
        if isinstance(config["data"], dict):
            errors += _name_manifests(config["data"], "test", "data.test")
            if "data.train" not in missing:
                errors += _name_manifests(config["data"], "train", "data.train", "train")
    if "manifest" in config and config["manifest"] != NOT_GIVEN:
        errors += _name_manifests(config, "manifest", "manifest")
    if config.get("decoder_file") is not None:
        errors += _read_decoder(config)
    return config, errors


def unknown_side(key: str, side: str) -> ConfigError:
    """The error for a side of the model that does not exist."""
    now = RENAMED.get(f"{key}.{side}", "")
    what = f"'{key}.{side}' is now called '{now}'" if now else "unknown side"
    return ConfigError(f"{key}.{side}", what, f"write {now}" if now else "the sides are encoder and rest")


def as_yaml(node: Any) -> str:
    """Plain data as YAML for OmegaConf and Hydra, which read exactly the same data from it."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(node)))


def _escaped(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return escaped(node) if isinstance(node, str) else node


def _name_manifests(node: dict[str, Any], field: str, key: str, single: str = "test") -> list[ConfigError]:
    """Give the manifests of a field their names. A wrong value becomes no manifests, and its error."""
    try:
        node[field] = named_manifests(node.get(field), key, single)
    except ConfigError as error:
        node[field] = {}
        return [error]
    return []


# Options as files ----------------------------------------------------------------------------------------------------


def option_node(group: str, name: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The node of an option, with some settings replaced.

    Args:
        group: Config group, such as ``decoder``.
        name: Name of an option of the group, or a YAML file with the settings of one.
        settings: Values by key. `ssl_asr.config.options.build_option` checks them.

    Raises:
        ConfigError: There is no such option and no such file, or the file is not an option.

    Example:
        >>> option_node("head", "linear", {"dropout": 0.2})
        {'_target_': 'ssl_asr.models.heads.LinearHead', 'dropout': 0.2}
    """
    folder = config_folder() / group
    path = Path(name) if Path(name).is_file() else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(option.stem for option in folder.glob("*.yaml"))
        raise ConfigError(group, f"no option and no file '{name}'", did_you_mean(name, known))
    return _read_node(path, group) | (settings or {})


def _read_node(path: Path, key: str) -> dict[str, Any]:
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except RecursionError:
        raise ConfigError(key, f"{path} is nested too deeply", "check the file") from None
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        what = next(iter(str(error).splitlines()), "it has no content")[:_MOST_CHARACTERS]
        raise ConfigError(key, f"{path} is not YAML: {what}", "check the file") from None
    if not isinstance(node, dict):
        raise ConfigError(key, f"{path} has no settings", "give a file that tune_decoding wrote")
    return {str(name): value for name, value in node.items()}


def _read_decoder(config: dict[str, Any]) -> list[ConfigError]:
    """Put the settings of ``decoder_file`` in the place of ``decoder``."""
    if not isinstance(config["decoder_file"], str) or not is_file_name(config["decoder_file"]):
        return []  # an error of its type
    path = Path(config["decoder_file"])
    if config["decoder"] is not None:
        return [ConfigError("decoder_file", "is given together with decoder", "give one of them")]
    if not path.is_file():
        return [ConfigError("decoder_file", f"no such file: {path}", "ssl-asr tune_decoding writes one")]
    try:
        config["decoder"] = _read_node(path, "decoder_file")
    except ConfigError as error:
        return [error]
    return []


def write_decoder(path: Path, option: Any) -> None:
    """Write the settings of a decoder option for ``decoder_file=``, with absolute paths of its files."""
    kind = type(option)
    node = {"_target_": f"{kind.__module__}.{kind.__name__}", **asdict(option)}
    files = {key: str(Path(node[key]).resolve()) for key in ("lm", "lexicon") if node.get(key) is not None}
    with written_whole(path) as file:
        file.write(as_yaml(node | files))
