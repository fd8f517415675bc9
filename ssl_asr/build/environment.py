"""What a machine has, and what of it would stop a run: libraries, devices, room, permissions, keys and checkpoints."""

import io
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape

from ssl_asr.config.schemas import TrainConfig
from ssl_asr.console import TitledTable, notify
from ssl_asr.errors import UserError, raise_all
from ssl_asr.models.checkpoints import cache_folder
from ssl_asr.textfiles import why_not_made
from ssl_asr.training.memory import machine_bytes
from ssl_asr.training.trainer import check_accelerator, check_strategy

_LIBRARIES = ("torch", "torchaudio", "lightning", "transformers", "hydra-core", "soundfile", "av")
# Free space in bytes below which a run is likely to fail, or may fail.
_LEAST_FREE, _LITTLE_FREE = 100_000_000, 5_000_000_000
# Extras that users of the commands choose: the package, a module of it, and what it brings.
EXTRAS = {
    "8bit": ("bitsandbytes", "bitsandbytes", "optimizer=adamw_8bit"),
    "corpus": ("espeakng-loader", "espeakng_loader", "ssl-asr corpus and demo: synthetic speech"),
    "ctranslate2": ("faster-whisper", "faster_whisper", "ssl-asr export to=ctranslate2"),
    "dashboard": ("wandb-workspaces", "wandb_workspaces", "ssl-asr dashboard"),
    "datasets": ("datasets", "datasets", "ssl-asr prepare: Hugging Face datasets"),
    "ggml": ("pywhispercpp", "pywhispercpp", "ssl-asr export to=ggml"),
    "kenlm": ("kenlm", "kenlm", "language models in KenLM's binary format"),
    "lexicon": ("flashlight-text", "flashlight.lib.text", "decoder=ctc_lexicon"),
    "lhotse": ("lhotse", "lhotse", "ssl-asr prepare: manifests of lhotse"),
    "lora": ("peft", "peft", "freeze_policy=lora"),
    "mlflow": ("mlflow-skinny", "mlflow", "logger=mlflow"),
    "notebooks": ("jupyterlab", "jupyterlab", "the notebooks"),
    "onnx": ("onnxruntime", "onnxruntime", "ssl-asr export to=onnx"),
    "optuna": ("hydra-optuna-sweeper", "hydra_plugins.hydra_optuna_sweeper", "sweep=optuna"),
    "serve": ("fastapi", "fastapi", "ssl-asr serve"),
    "slurm": ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher", "hydra/launcher=slurm"),
    "tensorboard": ("tensorboard", "tensorboard", "logger=tensorboard"),
    "translation": ("sacrebleu", "sacrebleu", "reference=translation: BLEU and chrF"),
}
_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row of the table of a machine.

    Attributes:
        name: What was looked at.
        seen: What was found.
        state: ``ok``; ``warning`` if some runs fail; ``error`` if all runs fail.
        remedy: What to do. Default: "" (nothing).
    """

    name: str
    seen: str
    state: Literal["ok", "warning", "error"] = "ok"
    remedy: str = ""


# Checks at the start of a run --------------------------------------------------------------------------------------


def check_torchaudio() -> None:
    """Refuse a torchaudio that does not work with the installed torch.

    transformers imports torchaudio too, and an error there looks like one of the checkpoint.

    Raises:
        UserError: It cannot be imported, or is of another release than torch.
    """
    ours = torch.__version__.partition("+")[0]
    remedy = f"install the release of torch: pip install torchaudio=={ours}"
    try:
        theirs = str(import_module("torchaudio").__version__).partition("+")[0]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError("torchaudio", f"cannot be imported with torch {ours}: {said}", remedy) from None
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise UserError("torchaudio", f"is release {theirs}, and torch is release {ours}", remedy)


def check_room(folder: Path) -> None:
    """Refuse a folder on a disk that is full, and warn if little is free.

    Raises:
        UserError: Less than 100 MB are free.
    """
    free = _free_bytes(folder)
    if free < _LEAST_FREE:
        raise UserError(str(folder), f"only {_size(free)} are free on its disk", "make room, or choose another folder")
    if free < _LITTLE_FREE:
        notify(f"{folder}: only {_size(free)} are free on its disk, and checkpoints may need more.")


def check_start(config: TrainConfig, folder: Path) -> None:
    """The cheap checks of a training run, before anything is loaded.

    Raises:
        UserError, UserErrors: This machine lacks what the run needs. Names all causes, each with its cure.
    """
    trainer, errors = config.trainer, []
    checks: list[Callable[[], None]] = [
        lambda: check_accelerator(trainer.accelerator, trainer.devices, prefix="trainer."),
        check_torchaudio,
        lambda: check_room(folder),
        getattr(config.logger, "check", lambda: None),
    ]
    for check in checks:
        try:
            check()
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    check_strategy(trainer)


# The table of a machine --------------------------------------------------------------------------------------------


def findings(config: TrainConfig) -> Iterator[Finding]:
    """Everything that `doctor` looks at on this machine.

    Args:
        config: A run, whose folder and logger are looked at.
    """
    yield Finding(name="python", seen=f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield from (_version(name) for name in ("ssl_asr", *_LIBRARIES))
    yield _checked("torch and torchaudio", check_torchaudio, "of one release")
    yield from _devices()
    for name, place in (("run_dir", Path(config.run_dir)), ("cache of ssl_asr", cache_folder()), ("cache", _hub())):
        yield _place("Hugging Face cache" if name == "cache" else name, place)
    yield _shared_memory()
    yield _checkpoints()
    yield _checked("logger", getattr(config.logger, "check", lambda: None), type(config.logger).__name__)
    key = "set" if os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").is_file() else "none in the environment"
    yield Finding(name="W&B key", seen=f"{key}; without one, logger=wandb logs offline")
    yield from _extras()


def _version(name: str) -> Finding:
    try:
        return Finding(name=name, seen=metadata.version(name))
    except metadata.PackageNotFoundError:
        state: Literal["ok", "error"] = "ok" if name == "ssl_asr" else "error"
        return Finding(
            name=name, seen="not installed", state=state, remedy="" if state == "ok" else f"pip install {name}"
        )


def _checked(name: str, check: Callable[[], None], good: str) -> Finding:
    try:
        check()
    except UserError as error:
        return Finding(name=name, seen=error.what, state="error", remedy=error.remedy)
    return Finding(name=name, seen=good)


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _size(machine_bytes() or 0)
    seen = f"{_counted(cores, 'core')}, {memory} of memory, {_counted(torch.get_num_threads(), 'thread')}"
    yield Finding(name="CPU", seen=seen)
    built = torch.version.cuda
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            yield Finding(name=f"CUDA {number}", seen=f"{device.name}, {_size(device.total_memory)}, CUDA {built}")
    elif built is not None and shutil.which("nvidia-smi") is not None:
        seen = f"torch is built for CUDA {built}, and finds no device"
        yield Finding(
            name="CUDA", seen=seen, state="warning", remedy="update the driver, or install torch for its CUDA"
        )
    else:
        yield Finding(name="CUDA", seen="no device" if built else "no device; torch is built for the CPU")
    if torch.backends.mps.is_available():
        yield Finding(name="MPS", seen="available")


def _place(name: str, folder: Path) -> Finding:
    fault = why_not_made(folder, folder=True)
    if fault is not None:
        return Finding(name=name, seen=fault, state="error", remedy="check its permissions, or choose another folder")
    free = _free_bytes(folder)
    seen = f"{folder}: can be written, {_size(free)} free"
    if free >= _LITTLE_FREE:
        return Finding(name=name, seen=seen)
    return Finding(name=name, seen=seen, state="error" if free < _LEAST_FREE else "warning", remedy="make room")


def _shared_memory() -> Finding:
    """Worker processes pass batches through shared memory, of which a container has 64 MB by default."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(name="shared memory", seen="not limited by a folder")
    size = shutil.disk_usage(place).total
    if size < 1_000_000_000:
        remedy = "start the container with --shm-size=8g, or use data.num_workers=0"
        return Finding(name="shared memory", seen=_size(size), state="warning", remedy=remedy)
    return Finding(name="shared memory", seen=_size(size))


def _checkpoints() -> Finding:
    """Pretrained checkpoints that need no download."""
    cached = {path.name.removeprefix("models--").replace("--", "/") for path in _hub().glob("models--*")}
    cached |= {path.name.replace("--", "/") for path in (cache_folder() / "checkpoints").glob("*")}
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    names = ", ".join(sorted(cached)[:8]) + (" …" if len(cached) > 8 else "")
    seen = f"{len(cached)} cached: {names}" if cached else "none cached"
    if offline and not cached:
        remedy = "unset HF_HUB_OFFLINE, or copy a checkpoint to a folder"
        return Finding(name="checkpoints", seen=f"{seen}, HF_HUB_OFFLINE is set", state="warning", remedy=remedy)
    return Finding(name="checkpoints", seen=seen + (", HF_HUB_OFFLINE is set" if offline else ""))


def _extras() -> Iterator[Finding]:
    """Every optional extra: what it brings, and whether its package works."""
    for option, (package, module, brings) in EXTRAS.items():
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                import_module(module)
            yield Finding(name=f"extra {option}", seen=f"installed: {brings}")
        except ModuleNotFoundError as error:
            absent = error.name is not None and module.startswith(error.name)
            seen = f"absent: {brings}" if absent else f"{package} cannot be imported: {error}"
            remedy = f"pip install 'ssl_asr[{option}]'" + (", if you need it" if absent else "")
            yield Finding(name=f"extra {option}", seen=seen, state="ok" if absent else "warning", remedy=remedy)
        except Exception as error:  # a broken package may raise anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            seen, remedy = f"{package} cannot be imported: {said}", f"pip install --force-reinstall {package}"
            yield Finding(name=f"extra {option}", seen=seen, state="warning", remedy=remedy)


def _hub() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int:
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    return shutil.disk_usage(above).free


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def print_findings(rows: list[Finding], console: Console) -> None:
    """Print the table of a machine."""
    table = TitledTable("This machine")
    for column in ("", "", "seen", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, f"[{_COLORS[row.state]}]{row.state}", escape(row.seen), escape(row.remedy))
    console.print(table)
