"""How every command starts: Hydra composes, mistakes are found before anything heavy, errors end with code 2."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ssl_asr.config.nodes import config_folder, register_schemas
from ssl_asr.config.resolve import resolve_command
from ssl_asr.config.schemas import TrainConfig, known_keys
from ssl_asr.errors import ConfigError, UserError, UserErrors, did_you_mean

EXIT_USER_ERROR = 2

Job = Callable[[Any, Path], float | None]
"""A command's work: from the resolved config and the job's folder to a number a sweep can compare."""


def _overrides(arguments: list[str]) -> tuple[list[str], bool] | None:
    """The overrides of a command line and whether it is a multirun; None where Hydra only shows something."""
    from hydra._internal.utils import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    shows = (parsed.help, parsed.hydra_help, parsed.cfg, parsed.info, parsed.shell_completion)
    elsewhere = (parsed.config_name, parsed.config_path, parsed.config_dir, parsed.experimental_rerun)
    if any(shows) or any(elsewhere):
        return None
    return list(parsed.overrides), bool(parsed.multirun)


def _jobs(overrides: list[str], multirun: bool) -> list[list[str]]:
    """The overrides of each job, sweeps multiplied out."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    if not multirun:
        return [overrides]
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _said(error: Exception) -> str:
    """Hydra's message without its stack of causes."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    return "; ".join(
        line
        for line in dict.fromkeys(lines)
        if not line.startswith(("object_type", "reference_type", "To append", "Set the env"))
    )


def _explain(name: str, override: str, error: Exception) -> ConfigError:
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    said = _said(error)
    if "must be a string or a list" in said:
        return ConfigError(key, f"a group takes the name of an option, not {value}", f"{key}=none where there is one")
    unknown = re.search(r"Key '(\S+)' (?:is not in struct|not in '\w+')", said)
    if unknown and "." not in key:
        return ConfigError(key, "unknown key", did_you_mean(key, known_keys(name)))
    if unknown:
        return ConfigError(key, "unknown key", "check its spelling against the group's option file under conf/")
    return ConfigError(key, said)


def _composes(name: str, overrides: list[str]) -> DictConfig | Exception:
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        return error


def _check_job(name: str, overrides: list[str]) -> list[UserError]:
    """Every mistake of one job: overrides that do not compose, each on its own, then what `resolve` finds."""
    good: list[str] = []
    errors: list[UserError] = []
    composed = _composes(name, overrides)
    if isinstance(composed, Exception):
        for override in overrides:
            result = _composes(name, [*good, override])
            if isinstance(result, Exception):
                errors.append(_explain(name, override, result))
            else:
                good.append(override)
        composed = _composes(name, good)
        if isinstance(composed, Exception):
            return [*errors, ConfigError("config", _said(composed))]
    try:
        # Hydra fills in the folder of the run later.
        for key in ("run_dir", "output_dir"):
            if key in composed and "${hydra:" in str(composed._get_node(key)):
                composed[key] = "."
        resolve_command(name, composed)
    except UserErrors as several:
        errors += several.errors
    except UserError as error:
        errors.append(error)
    return errors


def preflight(name: str, arguments: list[str]) -> None:
    """Find every mistake of a command line, sweeps multiplied out, before anything heavy is imported.

    Raises:
        UserErrors: all of them, each once.
    """
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    register_schemas()
    found = _overrides(arguments)
    if found is None:
        return
    overrides, multirun = found
    try:
        jobs = _jobs(overrides, multirun)
    except HydraException as error:
        raise ConfigError("command line", _said(error), "overrides are written key=value") from None
    errors: dict[str, UserError] = {}
    folders = [folder for job in jobs if (folder := _folder_of(job)) is not None]
    if len(set(folders)) < len(folders):
        what = f"one folder, {folders[0]}, for {len(jobs)} jobs"
        fix = f"hydra.sweep.dir={folders[0]} gives each job a folder of its own below it"
        errors["folder"] = ConfigError("run_dir" if name == "train" else "output_dir", what, fix)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for job in jobs:
            own = [override for override in job if not override.lstrip("+~").startswith("hydra")]
            errors |= {str(error): error for error in _check_job(name, own)}
    if errors:
        raise UserErrors(list(errors.values()))


def _folder_of(overrides: list[str]) -> str | None:
    """The folder a command line names for the results, as it is written there."""
    named = [override.partition("=")[2] for override in overrides if re.match(r"(run_dir|output_dir)=", override)]
    return named[-1] if named else None


def hydra_follows(arguments: list[str]) -> list[str]:
    """The command line with Hydra's own folder made the one the user named, so that none is left beside it."""
    found = _overrides(arguments)
    if found is None:
        return arguments
    overrides, multirun = found
    folder = _folder_of(overrides)
    if folder is None or multirun or any(override.startswith("hydra.run.dir=") for override in overrides):
        return arguments
    return [*arguments, f"hydra.run.dir={folder}"]


def refuse_ddp(config: TrainConfig) -> None:
    """Refuse several processes a job in a sweep: each would start the whole sweep again.

    Raises:
        ConfigError: always said before the job begins.
    """
    trainer = config.trainer
    if "ddp" in trainer.strategy or trainer.devices not in (1, "1"):
        what = f"{trainer.devices} devices with {trainer.strategy} in a sweep"
        raise ConfigError("trainer", what, "one device a job (trainer.devices=1), or torchrun for each job")


def name_arguments(arguments: list[str]) -> list[str]:
    """A command line whose two bare paths are named ``first`` and ``second``.

    Example:
        >>> name_arguments(["a", "b=c", "d"])
        ["first='a'", 'b=c', "second='d'"]
    """
    bare = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    if len(bare) != 2:
        return arguments
    names = iter(("first", "second"))
    return [f"{next(names)}='{argument}'" if argument in bare else argument for argument in arguments]


def run(name: str, job: Callable[[], Job]) -> None:
    """Run a command: the ``main`` of every entry point.

    Args:
        name: of its config.
        job: gives the work to do; called after the command line has been checked, so that it may import torch.
    """
    import hydra

    register_schemas()
    failures: list[str] = []

    @hydra.main(config_path=str(config_folder()), config_name=name, version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        try:
            config = resolve_command(name, cfg)
            if hydra_config.mode.name == "MULTIRUN" and isinstance(config, TrainConfig):
                refuse_ddp(config)
            return job()(config, Path(hydra_config.runtime.output_dir))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failures.append(str(error))
            if hydra_config.mode.name == "RUN":
                sys.exit(EXIT_USER_ERROR)
            if not str(hydra_config.launcher.get("_target_")).endswith("BasicLauncher"):
                raise
            return float("inf")

    if name == "compare":
        sys.argv[1:] = name_arguments(sys.argv[1:])
    try:
        preflight(name, sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    if name in ("train", "evaluate"):
        sys.argv[1:] = hydra_follows(sys.argv[1:])
    task()
    if failures:
        print(f"{len(failures)} of the jobs failed; the others are done", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
