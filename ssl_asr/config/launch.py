"""How every command starts: check the command line, then let Hydra run the command once or as a sweep."""

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ssl_asr.config.arguments import asks_for_help, read_words
from ssl_asr.config.check import composed_job, named_folder, preflight, several_processes
from ssl_asr.config.composing import hydra_ready, jobs_of, parse_arguments, quicken_lists
from ssl_asr.config.console_log import recorded
from ssl_asr.config.folders import config_folder
from ssl_asr.config.help import help_text
from ssl_asr.config.interruption import current, how_to_go_on, listening
from ssl_asr.config.locks import Lock, held
from ssl_asr.config.nodes import as_yaml, prepare, register_schemas
from ssl_asr.config.run_folder import forget_start, is_first
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.config.sweeps import noted, report_sweep
from ssl_asr.console import hush, results_only
from ssl_asr.errors import UserError, raise_all

EXIT_USER_ERROR = 2
# Commands with a folder of results, in which they save what they showed.
_SAVE_CONSOLE = ("train", "evaluate")
# Parts of the errors of torch, and of `ssl_asr.data.loaders`.
_WORKER_ENDED = ("DataLoader worker (pid", "DataLoader worker exited")
_OUT_OF_MEMORY = ("OutOfMemoryError", "DefaultCPUAllocator", "can't allocate memory", "not enough memory")

Job = Callable[[Any, Path], float | None]
"""The work of a command: takes its typed config and the folder of the job, returns a score that a sweep can compare."""


def hydra_follows(name: str, arguments: list[str]) -> list[str]:
    """The command line with Hydra's folder set to the folder of the results, so that Hydra makes no second one."""
    parsed = parse_arguments(name, arguments)
    folder = named_folder(parsed.overrides)
    own = any(override.startswith("hydra.run.dir=") for override in parsed.overrides)
    if folder is None or own or parsed.multirun or parsed.shows is not None:
        return arguments
    return [*arguments, f"hydra.run.dir={folder}"]


def show_config(name: str, arguments: list[str]) -> str:
    """The config of a command as it will run, as YAML. Values that must still be given are ``???``.

    Raises:
        ConfigError, UserErrors: An override cannot be composed.
    """
    parsed = parse_arguments(name, arguments)
    with hydra_ready(parsed):
        cfg, errors = composed_job(parsed, jobs_of(parsed)[0])
        raise_all(errors)
        assert cfg is not None
        node, _ = prepare(name, cfg)
    return as_yaml(node)


def run(name: str, job: Callable[[], Job]) -> None:
    """Run a command: the ``main`` of every entry point.

    Args:
        name: Name of the command.
        job: Returns the work to do. Called after the command line is checked, so that it may import torch.
    """
    if asks_for_help(sys.argv[1:]):
        print(help_text(name, _option_folders(sys.argv[1:])))
        return
    hush()
    quicken_lists()
    try:
        words = read_words(name, sys.argv[1:])
        for note in words.notes:
            print(f"note: {note}", file=sys.stderr)
        # Hydra takes overrides only in one piece.
        sys.argv[1:] = [*words.flags, *words.overrides]
        if parse_arguments(name, sys.argv[1:]).shows == "job":
            print(show_config(name, sys.argv[1:]), end="")
            return
        preflight(name, sys.argv[1:])
    except (UserError, OSError) as error:
        _print_error(_as_user_error(error))
        sys.exit(EXIT_USER_ERROR)
    is_new = True
    if name in _SAVE_CONSOLE:
        sys.argv[1:] = hydra_follows(name, sys.argv[1:])
        named = named_folder(parse_arguments(name, sys.argv[1:]).overrides)
        is_new = named is None or not Path(named).exists()
    # Transcripts are read by other programs.
    with results_only() if name == "transcribe" and not _only_shows(name) else nullcontext():
        failures = _run_hydra(name, job, is_new=is_new)
    if failures:
        print(f"{failures} of the jobs failed, the others are done", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _only_shows(name: str) -> bool:
    """Whether the command line asks Hydra to print something, and to run nothing."""
    return parse_arguments(name, sys.argv[1:]).shows is not None


def _option_folders(arguments: list[str]) -> list[Path]:
    """Folders of ``--config-dir`` and ``hydra.searchpath``, for the help."""
    text = " ".join(arguments)
    named = re.findall(r"--config-dir[ =](\S+)|-cd (\S+)", text)
    paths = [path for pair in named for path in pair if path]
    search = re.search(r"hydra\.searchpath=\[([^\]]*)\]", text)
    paths += [path.strip().removeprefix("file://") for path in search.group(1).split(",")] if search else []
    return [Path(path) for path in paths]


def _run_hydra(name: str, job: Callable[[], Job], *, is_new: bool) -> int:
    """Run the jobs of the command line by Hydra. Returns the number of failed jobs of a sweep.

    Args:
        name: Name of the command.
        job: See `run`.
        is_new: Whether the folder of results does not exist yet.
    """
    import hydra
    from hydra._internal import utils
    from hydra.core.hydra_config import HydraConfig

    from ssl_asr.config.resolve import resolve_command

    register_schemas()
    # The signal by which submitit announces a time limit. Jobs handle it by `Interruption`.
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    # Restored below, so that a process that runs several commands wraps it once.
    plain = utils.run_and_report
    utils.run_and_report = partial(_run_and_report, plain)

    # A launcher may send this function to another process.
    @hydra.main(config_path=str(config_folder()), config_name=name, version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        saves = name in _SAVE_CONSOLE and is_first()
        if hydra_config.mode.name != "MULTIRUN":
            with recorded(on=saves):
                try:
                    return _run_alone(name, job, resolve_command(name, cfg), folder, is_new=is_new)
                except (UserError, OSError, MemoryError, RuntimeError) as caught:
                    _print_error(_as_user_error(caught))
                    if saves:
                        forget_start(folder, is_new=is_new)
                    sys.exit(EXIT_USER_ERROR)
        number, overrides = int(hydra_config.job.num), list(hydra_config.overrides.task)
        with noted(folder, number, overrides, writes=is_first()) as note, listening(), recorded(on=saves):
            try:
                config = resolve_command(name, cfg)
                if isinstance(config, TrainConfig):
                    note.measure = f"best {config.trainer.monitor}"
                    raise_all(several_processes(config, hydra_config.launcher))
                note.score = _run_job(name, job, config, folder, in_sweep=True)
            except (UserError, OSError, MemoryError, RuntimeError) as caught:
                error = _as_user_error(caught)
                _print_error(error)
                note.error = str(error)
            # The jobs after a failed one run.
            return float("inf") if note.error else note.score

    try:
        task()
    finally:
        utils.run_and_report = plain
        failures = report_sweep()
    return failures


def _run_alone(name: str, job: Callable[[], Job], config: Any, folder: Path, *, is_new: bool) -> float | None:
    """Run a job that is not part of a sweep. A development run leaves nothing in its folder."""
    score = _run_job(name, job, config, folder, in_sweep=False)
    if isinstance(config, TrainConfig) and config.trainer.fast_dev_run is not False and is_first():
        forget_start(folder, is_new=is_new)
    return score


def _run_job(name: str, job: Callable[[], Job], config: Any, folder: Path, *, in_sweep: bool) -> float | None:
    """Run one job, with a lock on what it writes."""
    # The jobs of a sweep have several folders, and its command line takes none of them.
    run_dir = None if in_sweep else getattr(config, "run_dir", None)
    current().advise(how_to_go_on(name, run_dir, getattr(config, "output", None)))
    with _lock(name, config):
        return job()(config, folder)


def _run_and_report(plain: Callable[[Callable[[], Any]], Any], job: Callable[[], Any]) -> Any:
    """Run a job by Hydra. If one of Hydra's own files cannot be written, that is one line, and not a traceback."""

    def checked() -> Any:
        try:
            return job()
        except (OSError, ValueError) as error:
            # The configuration of logging wraps the error of a log file that cannot be opened.
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            folder = named_folder(sys.argv[1:])
            cause.filename = cause.filename or ("a file of Hydra" if folder is None else str(Path(folder) / ".hydra"))
            _print_error(_as_user_error(cause))
            sys.exit(EXIT_USER_ERROR)

    return plain(checked)


def _lock(name: str, config: Any) -> AbstractContextManager[None]:
    """The lock on what a command writes. States of an encoder have files of their own for each process."""
    output: str | None = getattr(config, "output", None)
    if name == "train":
        return held(Lock.of_folder(Path(config.run_dir), "run_dir")) if is_first() else nullcontext()
    if name in ("evaluate", "prepare", "check"):
        return held(Lock.of_folder(Path(config.output_dir), "output_dir"))
    if name in ("export", "import"):
        return held(Lock.of_output(Path(config.output_dir), "output_dir"))
    return nullcontext() if output is None else held(Lock.of_output(Path(output)))


def _as_user_error(error: UserError | OSError | MemoryError | RuntimeError) -> UserError:
    """The error for the user. An error of the file system that names no file is raised as it is, unless a disk is full.

    Raises:
        OSError: It names no file.
        RuntimeError: It is not one of memory or of a loader worker.
    """
    if isinstance(error, UserError):
        return error
    if any(sign in str(error) for sign in _WORKER_ENDED):
        remedy = "see the error above. If shared memory is full (df -h /dev/shm), enlarge it or use data.num_workers=0"
        return UserError("data.num_workers", str(error).partition(". ")[0], remedy)
    if not isinstance(error, OSError):
        # torch is not imported here.
        if not isinstance(error, MemoryError) and not any(sign in repr(error) for sign in _OUT_OF_MEMORY):
            raise error
        said = (str(error).strip() or "the allocation failed").splitlines()[0].partition(". ")[0]
        return UserError("memory", f"is not enough: {said}", "use a smaller max_batch_s, beam_size, window or model")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not full and error.filename is None:
        raise error
    where = "a file" if error.filename is None else os.fsdecode(error.filename)
    remedy = "make room, and run the command again" if full else "check the path and its permissions"
    return UserError(where, error.strerror or str(error), remedy)


def _print_error(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
