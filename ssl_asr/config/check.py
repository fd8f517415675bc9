"""Finds every mistake of a command line before anything else runs."""

import re
import shlex
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_asr.config.composing import (
    Arguments,
    hydra_ready,
    jobs_of,
    missing_option,
    parse_arguments,
    said,
    try_compose,
    unknown_key,
    without_hydra,
)
from ssl_asr.config.expected import describe
from ssl_asr.config.folders import option_names
from ssl_asr.config.found import file_errors, option_for_checkpoint
from ssl_asr.config.nodes import RENAMED
from ssl_asr.config.schemas import SCHEMAS, TrainConfig, annotation_of, known_keys
from ssl_asr.errors import ConfigError, UserError, UserErrors, did_you_mean, missing_extra
from ssl_asr.textfiles import shown

# Values of earlier versions, and what to write now.
_RENAMED_VALUES = {"features=cached": "state_cache=disk", "features=none": "state_cache=none"}

# Options of Hydra's plugins: the plugin, and the extra that installs it.
_PLUGINS = {
    "optuna": ("hydra-optuna-sweeper", "optuna"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
}


def preflight(name: str, arguments: list[str]) -> None:
    """Check a command line, with every job of a sweep. Does nothing if the command line only shows something.

    Raises:
        ConfigError, UserErrors: Every mistake, each once.
    """
    parsed = parse_arguments(name, arguments)
    if parsed.shows is not None:
        return
    errors: dict[str, UserError] = {}
    with hydra_ready(parsed):
        jobs = jobs_of(parsed)
        for error in [*_shared_folder(name, jobs), *_shared_output(jobs)]:
            errors[str(error)] = error
        for job in jobs:
            found = _check_job(name, parsed, job, in_sweep=parsed.multirun or len(jobs) > 1)
            errors |= {str(error): error for error in found}
    if errors:
        raise UserErrors(list(errors.values()))


def _shared_folder(name: str, jobs: list[list[str]]) -> list[ConfigError]:
    """An error if several jobs would write to one folder."""
    folders = [folder for job in jobs if (folder := named_folder(job)) is not None]
    if len(set(folders)) == len(folders):
        return []
    key = "run_dir" if name == "train" else "output_dir"
    remedy = f"{shlex.quote(f'hydra.sweep.dir={folders[0]}')} gives each job a folder below it"
    return [ConfigError(key, f"is {folders[0]} for {len(jobs)} jobs", remedy)]


def _shared_output(jobs: list[list[str]]) -> list[ConfigError]:
    """An error if several jobs would write one file."""
    named = [override.partition("=")[2] for job in jobs for override in job if override.startswith("output=")]
    twice = [output for output, count in Counter(named).items() if count > 1]
    remedy = "run the command once for each, with an output of its own"
    return [ConfigError("output", f"is {output} for {len(jobs)} jobs", remedy) for output in twice]


def named_folder(overrides: list[str]) -> str | None:
    """The folder that a command line names for its results, in Hydra's grammar, or None."""
    named = [override.partition("=")[2] for override in overrides if re.match(r"(run_dir|output_dir)=", override)]
    return named[-1] if named else None


def composed_job(arguments: Arguments, overrides: list[str]) -> tuple[DictConfig | None, list[UserError]]:
    """The config of a job, and an error for each override that cannot be composed. None if nothing can be composed."""
    cfg = try_compose(arguments.config, overrides)
    if isinstance(cfg, DictConfig):
        return without_hydra(cfg), []
    nothing = try_compose(arguments.config, [])
    if not isinstance(nothing, DictConfig):
        return None, [ConfigError("config", *_renamed_in(said(nothing)))]
    errors: list[UserError] = []
    good: list[str] = []
    for override in overrides:
        tried = try_compose(arguments.config, [*good, override])
        if isinstance(tried, DictConfig):
            good.append(override)
        else:
            errors.append(_explain(arguments.config, override, tried, good))
    cfg = try_compose(arguments.config, good)
    if isinstance(cfg, DictConfig):
        return without_hydra(cfg), errors
    return None, [*errors, ConfigError("config", *_renamed_in(said(cfg)))]


def several_processes(config: TrainConfig, launcher: DictConfig | None = None) -> list[UserError]:
    """An error if a job of a sweep starts several processes, each of which would start the whole sweep.

    Slurm starts the processes of a job itself, so that a job may have several there.

    Args:
        config: The job.
        launcher: Hydra's launcher, which starts the jobs. Default: None (they run in this process).
    """
    trainer = config.trainer
    one = trainer.devices in (1, "1") or (isinstance(trainer.devices, list) and len(trainer.devices) == 1)
    if launcher is not None and str(launcher.get("_target_")).endswith("SlurmLauncher"):
        tasks, nodes = launcher.tasks_per_node, launcher.nodes
        count = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
        if (str(tasks), int(nodes)) == (str(count), trainer.num_nodes):
            return []
        job = f"devices={trainer.devices} num_nodes={trainer.num_nodes}"
        what = f"has tasks_per_node={tasks} nodes={nodes}, and the job has {job}"
        remedy = "use the number of devices as tasks_per_node, and num_nodes as nodes"
        return [ConfigError("hydra.launcher", what, remedy)]
    if one and trainer.num_nodes == 1 and not any(kind in trainer.strategy for kind in ("ddp", "fsdp")):
        return []
    what = f"has devices={trainer.devices}, num_nodes={trainer.num_nodes} and strategy={trainer.strategy} in a sweep"
    alone = "start each job by itself, with torchrun"
    remedy = f"use trainer.devices=1 trainer.strategy=auto, or hydra/launcher=slurm, or {alone}"
    return [ConfigError("trainer", what, remedy)]


def _check_job(name: str, arguments: Arguments, overrides: list[str], *, in_sweep: bool) -> list[UserError]:
    """Every mistake of a job: first overrides that do not compose, then values."""
    from ssl_asr.config.resolve import resolve_command

    cfg, errors = composed_job(arguments, overrides)
    if cfg is None:
        return errors
    try:
        config = resolve_command(name, cfg)
        if in_sweep and isinstance(config, TrainConfig):
            whole = try_compose(arguments.config, overrides)
            errors += several_processes(config, whole.hydra.launcher if isinstance(whole, DictConfig) else None)
    except UserErrors as several:
        errors += several.errors
    except UserError as error:
        errors.append(error)
    known = {error.where for error in errors}
    return [*errors, *(error for error in file_errors(name, cfg) if error.where not in known)]


def _explain(config: str, override: str, error: Exception, good: list[str]) -> ConfigError:
    """What is wrong with an override that Hydra refuses."""
    key, _, value = override.lstrip("+~").partition("=")
    message = said(error)
    renamed = _renamed(key, value)
    if renamed is not None:
        return renamed
    if "must be a string or a list" in message:
        return ConfigError(key, f"is a group, and its value is the name of an option, not {value}", f"write {key}=none")
    option = missing_option(error)
    if option is not None and option[0] in _PLUGINS:
        return missing_extra(override, *_PLUGINS[option[0]])
    if option is not None:
        if key == "backbone" and ("/" in option[0] or Path(option[0]).exists()):
            return ConfigError(key, f"no option '{option[0]}'", option_for_checkpoint(option[0]))
        return ConfigError(key, f"no option '{option[0]}'", did_you_mean(*option, f"ssl-asr {config} --help"))
    unknown = unknown_key(error)
    if unknown is None:
        return _wrong_type(config, key, value) or ConfigError(key, *_renamed_in(message))
    return _unknown(config, key, value, unknown, good)


def _unknown(config: str, key: str, value: str, unknown: str, good: list[str]) -> ConfigError:
    """What is wrong with an override in which a key is unknown."""
    parent, _, last = key.rpartition(".")
    above = unknown.rpartition(".")[2]
    if above != last and above in parent.split("."):
        known = known_keys(config) if config in SCHEMAS and key.startswith(f"{above}.") else []
        return ConfigError(key, f"unknown key '{above}'", _renamed_in(above)[1] or did_you_mean(above, known))
    if above != last:
        what = f"the file of option '{value}' has an unknown key '{unknown}'"
        known = known_keys(config) if config in SCHEMAS else []
        return ConfigError(key, what, _renamed_in(unknown)[1] or did_you_mean(unknown, known))
    if not parent:
        known = known_keys(config) if config in SCHEMAS else _keys_of(config, good, "")
        return ConfigError(key, "unknown key", did_you_mean(key, known, f"ssl-asr {config} --help"))
    known = _keys_of(config, good, parent)
    if not known and option_names(parent):
        return ConfigError(key, f"no {parent} is chosen", f"choose one too: {parent}={'|'.join(option_names(parent))}")
    return ConfigError(key, "unknown key", did_you_mean(last, known))


def _wrong_type(config: str, key: str, value: str) -> ConfigError | None:
    """An error if a top-level key has a value of the wrong type."""
    named = {field.name: field for field in fields(SCHEMAS[config])} if config in SCHEMAS else {}
    if key not in named or "group" in named[key].metadata:
        return None
    return ConfigError(key, f"is {shown(value)}, expected {describe(annotation_of(named[key]))}")


def _keys_of(config: str, overrides: list[str], parent: str) -> list[str]:
    """Keys of a node of the config, for suggestions."""
    cfg = try_compose(config, overrides)
    node: Any = OmegaConf.select(cfg, parent) if parent and isinstance(cfg, DictConfig) else cfg
    return [str(key) for key in node if key not in ("_target_", "hydra")] if isinstance(node, DictConfig) else []


def _renamed(key: str, value: str) -> ConfigError | None:
    """An error if a key is from an earlier version. ``key`` may be a group mounted at the old key."""
    for old, new in RENAMED.items():
        group, at, package = key.rpartition("@")
        if package == old or package.startswith(f"{old}."):
            now = _RENAMED_VALUES.get(f"{key}={value}", f"{group}{at}{new}{package.removeprefix(old)}={value}")
            return ConfigError(key, f"'{old}' is now called '{new}'", f"write {now}")
    return None


def _renamed_in(message: str) -> tuple[str, str]:
    """Hydra's message, and what to write now if it names a key of an earlier version."""
    for old, new in RENAMED.items():
        if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w])", message):
            return message, f"'{old}' is now called '{new}'"
    return message, ""
