"""What distinguishes a training run from others: its name, its sweep, its command line and its git commit."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ssl_asr.config.schemas import TrainConfig
from ssl_asr.metrics.provenance import Clock

# Overrides that say where a run reads and writes, and what it shows.
_NOT_NAMED = (
    "run_dir",
    "run_name",
    "resume",
    "verbose",
    "samples",
    "extensions",
    "logger",
    "callbacks",
    "debug",
    "sweep",
)
_NOT_NAMED_GROUPS = (
    "data.",
    "logger.",
    "callbacks.",
    "hydra",
    "trainer.accelerator",
    "trainer.devices",
    "backbone.source",
)
_LONGEST = 100


def job_name(backbone: str, overrides: list[str]) -> str:
    """The name of a run: its backbone, and the overrides that make it what it is.

    Args:
        backbone: Name of the ``backbone`` option.
        overrides: Overrides of the job.

    Example:
        >>> job_name("whisper_tiny_en", ["backbone=whisper_tiny_en", "seed=2", "freeze=true", "run_dir=a/b"])
        'whisper_tiny_en-freeze=true-seed=2'
    """
    named = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key != "backbone" and key not in _NOT_NAMED and not key.startswith(_NOT_NAMED_GROUPS):
            # Hydra writes the values of a sweep as Python does.
            shown = value.lower() if value in ("True", "False") else value.rsplit("/", 1)[-1]
            named.append(f"{key}={shown}")
    name = "-".join([backbone, *named])
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def job_record(config: TrainConfig, folder: Path, task: str) -> dict[str, Any]:
    """Plain data on a run, which loggers show besides its config.

    Args:
        config: The resolved configuration.
        folder: Folder of the run.
        task: Name of the task.

    Returns:
        ``name``, ``group`` and ``job_type``, ``tags``, and ``command``, ``versions``, ``git`` and ``platform`` as in
        ``results.json``. ``group`` is the folder of the sweep, or None.
    """
    group, tags = None, [config.backbone.source, task]
    name = config.run_name or folder.name
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        option = str(hydra.runtime.choices.get("backbone", folder.name))
        tags[0] = option
        name = config.run_name or job_name(option, list(hydra.overrides.task))
        if hydra.mode.name == "MULTIRUN":
            # multirun/2026-01-01/12-00-00, or a name of the user's.
            group = "/".join(Path(hydra.sweep.dir).parts[-2:]) if "multirun" in hydra.sweep.dir else hydra.sweep.dir
    record = Clock().record()
    origin = {key: record[key] for key in ("command", "versions", "git", "platform")}
    return {"name": name, "group": group, "job_type": "train" if group is None else "sweep", "tags": tags, **origin}
