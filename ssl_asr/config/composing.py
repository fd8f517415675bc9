"""Composing a command's config as Hydra will: arguments, search path, and the jobs of a sweep. Imports no torch."""

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_asr.config.folders import config_folder, option_names
from ssl_asr.config.nodes import register_schemas
from ssl_asr.errors import ConfigError

# Sweeps with more jobs than this are checked one swept key at a time.
_MOST_JOBS = 64
# Hydra's messages may list every option and folder.
_MOST_CHARACTERS = 300
# What Hydra raises for options that do not go together, and for option files of users that are no settings.
_COMPOSE_ERRORS = (
    *(HydraException, OmegaConfBaseException, YAMLError, RecursionError, OSError),
    *(ValueError, TypeError, AttributeError, AssertionError, LookupError),
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line, parsed by Hydra's own parser.

    Attributes:
        config: Name of the primary config: the command's, unless ``--config-name`` gives another.
        overrides: Overrides, as they are written.
        multirun: Whether ``-m`` is given.
        config_dir: Folder of ``--config-dir``, or None.
        config_path: Folder of ``--config-path`` in place of ours, or None.
        shows: What ``--cfg`` shows, another word for any other flag that only shows something, or None for a run.
    """

    config: str
    overrides: list[str]
    multirun: bool
    config_dir: str | None
    config_path: str | None
    shows: str | None


def quicken_lists() -> None:
    """Make Hydra parse a list in time proportional to its length.

    Hydra 1.3 finds each item by counting from the first one. A command line with 10,000 files took minutes.
    """
    HydraOverrideVisitor.visitListContainer = _visit_list


def _visit_list(visitor: HydraOverrideVisitor, context: OverrideParser.ListContainerContext) -> list[Any]:
    return [visitor.visitElement(element) for element in context.element()]


def parse_arguments(name: str, arguments: list[str]) -> Arguments:
    """The command line of a command."""
    parsed = get_args_parser().parse_intermixed_args(arguments)
    flags = {
        "package": parsed.package,
        "help": parsed.help,
        "hydra_help": parsed.hydra_help,
        "info": parsed.info,
        "shell_completion": parsed.shell_completion,
        "rerun": parsed.experimental_rerun,
    }
    shows = next((flag for flag, given in flags.items() if given), parsed.cfg)
    return Arguments(
        config=parsed.config_name or name,
        overrides=list(parsed.overrides),
        multirun=bool(parsed.multirun),
        config_dir=parsed.config_dir,
        config_path=parsed.config_path,
        shows=shows,
    )


@contextmanager
def hydra_ready(arguments: Arguments) -> Iterator[None]:
    """Make `compose` find configs where the command line says.

    Raises:
        ConfigError: ``--config-dir`` or ``--config-path`` is not a folder.
    """
    register_schemas()
    for flag, folder in (("--config-dir", arguments.config_dir), ("--config-path", arguments.config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(flag, f"no such folder: {Path(folder).resolve()}", "check the path")
    main = config_folder() if arguments.config_path is None else Path(arguments.config_path).resolve()
    path = create_config_search_path(str(main))
    if arguments.config_dir is not None:
        folder = f"file://{Path(arguments.config_dir).resolve()}"
        # Hydra requires that the source of the schemas is the last one.
        path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    _compose.cache_clear()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name=arguments.config, config_search_path=path)
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def try_compose(config: str, overrides: Sequence[str]) -> DictConfig | Exception:
    """The composed config with Hydra's own node, or the error."""
    return _compose(config, tuple(overrides))


@lru_cache(maxsize=256)
def _compose(config: str, overrides: tuple[str, ...]) -> DictConfig | Exception:
    """See `try_compose`. Composing takes about 0.3 s, and errors are found by composing the same again."""
    try:
        return compose(config, overrides=list(overrides), return_hydra_config=True)
    except _COMPOSE_ERRORS as error:
        return error


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The config without Hydra's own node. Folders that Hydra names by the time are named."""
    named = OmegaConf.select(cfg, "hydra.run.dir", throw_on_resolution_failure=False)
    with_folder: Any = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for key in ("run_dir", "output_dir"):
        if key in with_folder and "${hydra:" in str(with_folder._get_node(key)):
            with_folder[key] = str(named or ".")
    composed: DictConfig = with_folder
    return composed


# Sweeps --------------------------------------------------------------------------------------------------------------


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Parsed overrides.

    Raises:
        ConfigError: The syntax of an override is wrong.
    """
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            # Words of the command line are checked before. This one is from a config of Hydra's sweeper.
            key = override.partition("=")[0]
            raise ConfigError(key, f"cannot be parsed: {said(error)}", "write key=value") from None
    return parsed


def jobs_of(arguments: Arguments) -> list[list[str]]:
    """The overrides of each job that the command line starts. Of a search space, jobs with sample values.

    A grid is multiplied out if it has at most 64 jobs. Otherwise each swept key is tried alone. Of a search space such
    as ``interval(a, b)``, the ends are tried.

    Raises:
        ConfigError: The syntax of an override is wrong.
    """
    parsed = parse_overrides(arguments.overrides)
    plain = [override for override in parsed if not override.is_sweep_override()]
    fixed = [override.input_line or "" for override in plain]
    base = try_compose(arguments.config, fixed)
    params: list[Override] = []
    multirun = arguments.multirun
    if isinstance(base, DictConfig):
        multirun = multirun or "MULTIRUN" in str(base.hydra.mode)
        given = {override.get_key_element() for override in parsed}
        params = parse_overrides([f"{key}={value}" for key, value in _sweeper_params(base) if key not in given])
    if not multirun:
        return [arguments.overrides]
    swept = {o.get_key_element(): _samples(o) for o in [*params, *parsed] if o.is_sweep_override()}
    fixed += [override.input_line or "" for override in params if not override.is_sweep_override()]
    return [[*fixed, *job] for job in _combined(swept)]


def _sweeper_params(cfg: DictConfig) -> list[tuple[str, str]]:
    """The search space of Hydra's sweeper, by key."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params")
    return [] if params is None else [(str(key), str(value)) for key, value in params.items()]


def _samples(override: Override) -> list[str]:
    """Values of a swept key: all of a list, the ends of an interval."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if isinstance(value, ChoiceSweep) or override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return []


def _combined(swept: dict[str, list[str]]) -> list[list[str]]:
    lists = [[f"{key}={value}" for value in values] for key, values in swept.items() if values]
    count = 1
    for each in lists:
        count *= len(each)
    if count <= _MOST_JOBS:
        return [list(job) for job in itertools.product(*lists)]
    first = [each[0] for each in lists]
    return [[*first[:i], value, *first[i + 1 :]] for i, each in enumerate(lists) for value in each]


# Hydra's messages ----------------------------------------------------------------------------------------------------


def said(error: Exception) -> str:
    """Hydra's message on one line, without its stack of causes."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    aside = ("object_type", "reference_type", "full_key", "To append", "Set the env", "See https", "^")
    text = "; ".join(line for line in dict.fromkeys(lines) if not line.startswith(aside))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def unknown_key(error: Exception) -> str | None:
    """The key that Hydra says is unknown, or None for another error."""
    found = re.search(r"Key '(\S+)' (?:is not in struct|not in '\w+')", str(error) + str(error.__cause__ or ""))
    return found.group(1) if found else None


def missing_option(error: Exception) -> tuple[str, list[str]] | None:
    """The option that Hydra did not find, and the options of its group, or None for another error."""
    text = str(error)
    found = re.search(
        r"Could not find '([^\n]*)'\n+Available options in '([^\n]*)':(.*?)Config search path", text, re.S
    )
    if found is not None:
        return found[1].removeprefix(f"{found[2]}/"), found[3].split()
    # For an option in a list, Hydra names neither its group's options nor those of --config-dir.
    listed = re.search(r"Could not load '([^\n]*)/([^\n/]*)'\.(.*)", text, re.S)
    if listed is None:
        return None
    folders = [Path(path) for path in re.findall(r"path=file://([^\n]*)", listed[3])]
    return listed[2], option_names(listed[1], folders)
