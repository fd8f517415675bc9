"""How the command line reads the text of each key: as a path, as other text, as a list, or by Hydra's grammar."""

from dataclasses import dataclass, fields
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ssl_asr.config.help import defaults_of
from ssl_asr.config.parts import Named
from ssl_asr.config.schemas import SCHEMAS, annotation_of, known_keys
from ssl_asr.config.tools import COLUMNS
from ssl_asr.types import InputPath, IsPath, ManifestPath, ModelName, OutputPath, PathRole

# Settings of options that are text, by the types that their dataclasses have. The dataclasses import torch.
SETTINGS: dict[str, Any] = {
    "data.train": Named,
    "data.dev": ManifestPath | None,
    "data.test": Named,
    "data.root": InputPath | None,
    "audio_augment.noise.manifest": ManifestPath,
    "audio_augment.rooms.manifest": ManifestPath,
    "backbone.source": ModelName,
    "decoder.lm": InputPath | None,
    "decoder.rescore_lm": InputPath | None,
    "decoder.lexicon": InputPath | None,
    "decoder.hotwords": list[str],
    "decoder.prompt": str | None,
    "state_cache.folder": OutputPath,
    "logger.project": str,
    "logger.entity": str | None,
    "logger.group": str | None,
    "logger.tags": list[str],
    **{f"columns.{key}": str | None for key in COLUMNS},
    "hydra.run.dir": OutputPath,
    "hydra.sweep.dir": OutputPath,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the text of a key is read.

    Attributes:
        role: Role of a path, ``text`` for other text, or None for values that are read by Hydra's grammar.
        listed: Whether the value may be a list.
        single: Whether the value may be a single item, not in a list.
        named: Whether the value may be a mapping from names to paths.
        optional: Whether null is a value.
    """

    role: PathRole | Literal["text"] | None = None
    listed: bool = False
    single: bool = True
    named: bool = False
    optional: bool = False


def reading_of(annotation: Any) -> Reading:
    """The reading of a key with this type.

    Example:
        >>> reading_of(list[InputPath]).listed, reading_of(str | None).role
        (True, 'text')
    """
    if annotation == Named or (get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) is dict):
        role = _role(annotation)
        return Reading(role=role, listed=role is not None, named=role is not None)
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = [part for part in parts if part is not NoneType]
    lists = [kind for kind in map(_base, kinds) if get_origin(kind) is list]
    single = len(lists) < len(kinds)
    roles = [_role(get_args(kind)[0]) for kind in lists] + [
        _role(kind) for kind in kinds if get_origin(_base(kind)) is not list
    ]
    role = roles[0] if roles and roles.count(roles[0]) == len(roles) else None
    return Reading(role=role, listed=bool(lists), single=single, optional=len(kinds) < len(parts))


def _base(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _role(annotation: Any) -> PathRole | Literal["text"] | None:
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    roles = [mark.role for mark in marks if isinstance(mark, IsPath)]
    if roles:
        role: PathRole = roles[0]
        return role
    return "text" if _base(annotation) is str else None


@lru_cache(maxsize=32)
def readings(name: str) -> dict[str, Reading]:
    """The reading of every key of a command, settings of options included. Other keys are read by Hydra's grammar."""
    known = {each.name: each for each in fields(SCHEMAS[name])}
    plain = {key: reading_of(annotation_of(each)) for key, each in known.items() if "group" not in each.metadata}
    settings = {key: reading_of(annotation) for key, annotation in SETTINGS.items()}
    return plain | {key: each for key, each in settings.items() if key.partition(".")[0] in {*known, "hydra"}}


@lru_cache(maxsize=32)
def first_parts(name: str) -> frozenset[str]:
    """What a key of a command may start with: its keys and groups, and ``hydra``."""
    groups = {key.removeprefix("optional ").partition("@")[0] for key in defaults_of(name)}
    return frozenset({*known_keys(name), *groups, "hydra"})
