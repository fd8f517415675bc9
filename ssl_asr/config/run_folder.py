"""The folder of a training run: whether it holds a run already."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ssl_asr.config.locks import Lock, in_use
from ssl_asr.errors import ConfigError, exists_already

AUTO = "auto"
# Any of these shows that a folder holds a run.
_SIGNS = ("config.yaml", "checkpoints", "metrics", "results.json", "predictions")
# Folders that the default names of folders begin with.
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
# Variables that number the processes of a run, as Lightning reads them.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_first() -> bool:
    """Whether this is the first process of a run, which writes its files. Also valid before a Trainer exists."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def resumes(resume: str | None) -> str | None:
    """How a run resumes. A job that Slurm started again continues by itself."""
    return AUTO if os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0") else resume


def other_run(resume: str | None, folder: Path) -> Iterator[ConfigError]:
    """An error if a folder holds a run that ``resume`` does not continue, and whose results would be overwritten.

    Also an error if another process is writing there. Only the first process looks, because it writes to the folder
    before the others start.
    """
    if not is_first():
        return
    used = list(in_use(Lock.of_folder(folder, "run_dir")))
    yield from used
    if used or resumes(resume) == AUTO or not any((folder / name).exists() for name in _SIGNS):
        return
    if resume is None or not Path(resume).resolve().is_relative_to(folder.resolve()):
        what, remedy = f"{folder} already holds a run", "write resume=auto to continue it, or choose another run_dir"
        yield ConfigError("run_dir", what, remedy)


def training_run(folder: Path) -> Iterator[ConfigError]:
    """An error if a folder holds a training run, whose results an evaluation would overwrite."""
    if (folder / "checkpoints").is_dir():
        what = f"{folder} is the folder of a training run, whose results would be overwritten"
        yield ConfigError("output_dir", what, "choose another output_dir")


def other_results(folder: Path, *, overwrite: bool) -> Iterator[ConfigError]:
    """An error if a folder holds results that an evaluation would overwrite.

    Args:
        folder: Folder of the new results.
        overwrite: Whether those of an earlier evaluation may be overwritten. Those of a training run never are.
    """
    errors = list(training_run(folder))
    yield from errors
    if not errors and not overwrite and any((folder / name).exists() for name in ("results.json", "predictions")):
        yield exists_already(folder, "output_dir", "already holds the results of an evaluation")


def forget_start(folder: Path, *, is_new: bool) -> None:
    """Remove what Hydra wrote for a command that wrote nothing else: it was refused, or is a development run.

    Args:
        folder: Folder of the results.
        is_new: Whether this command made the folder. It is then removed if it is empty, and so is the folder of
            the day that it is in.
    """
    if any((folder / name).exists() for name in _SIGNS):
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    with suppress(OSError):
        if is_new:
            folder.rmdir()
            if _DAY.fullmatch(folder.parent.name):
                folder.parent.rmdir()
