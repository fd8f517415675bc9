"""``export.json``: what was exported, how it compares, and how it runs."""

import re
from pathlib import Path
from typing import Any

from ssl_asr.config.exporting import ExportConfig
from ssl_asr.data.identity import content_digest
from ssl_asr.export.base import ExportModel, Format
from ssl_asr.export.parity import Parity
from ssl_asr.inference.model import find_checkpoint
from ssl_asr.metrics.provenance import Clock

# Folders of absolute paths: in quotes, where names may have spaces, and elsewhere. Addresses are no paths.
_FOLDERS = (
    re.compile(r"(?<=')((?:[\w.+@]+=)?)~?/(?!/)[^'\n]*/"),
    re.compile(r"((?<=file://)|(?<![\w./…]))~?/(?!/)(?:[^\s/'\",=\[\]{}]+/)+"),
    re.compile(r"((?<!\w))[A-Za-z]:\\(?:[^\s\\'\",=\[\]{}]+\\)+"),
)


def sidecar(
    config: ExportConfig,
    form: Format,
    model: ExportModel,
    folder: Path,
    quantization: str,
    parity: Parity,
    clock: Clock,
) -> dict[str, Any]:
    """Content of ``export.json``.

    Args:
        config: The export.
        form: Its format.
        model: The model.
        folder: The written files.
        quantization: Type of the weights.
        parity: How the transcripts compare.
        clock: Started with the export.
    """
    checkpoint, run = find_checkpoint(config.model), clock.record()
    name = config.push or Path(config.output_dir).name
    return {
        "format": form.name,
        "quantization": quantization,
        "task": model.module.task_name,
        "model": config.model if checkpoint is None else checkpoint.name,
        "checkpoint_digest": None if checkpoint is None else content_digest(checkpoint),
        "license": config.license,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "bytes": folder_bytes(folder),
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_of(folder)},
        "window": window_record(model, form, parity),
        "usage": form.usage(name, model),
        "parity": parity.record(),
        "run": {**run, "command": without_folders(run["command"])},
    }


def window_record(model: ExportModel, form: Format, parity: Parity) -> dict[str, Any] | None:
    """The window of a Whisper encoder, and whether the runtime can have it. None for models without a window."""
    if model.window is None:
        return None
    return {
        "window": model.window,
        "tail_s": model.tail_s,
        "runtime_encodes_real_lengths": form.real_length,
        "same_text_with_real_lengths": parity.real_lengths_hold() if form.real_length else None,
    }


def without_folders(text: str) -> str:
    r"""A text whose absolute paths are cut to their last parts.

    Example:
        >>> without_folders("model=/home/me/runs/a.ckpt and https://huggingface.co/a/b")
        'model=…/a.ckpt and https://huggingface.co/a/b'
        >>> without_folders(r"'run_dir=/home/my name/x' file:///home/me/x D:\me\x")
        "'run_dir=…/x' file://…/x …/x"
    """
    for paths in _FOLDERS:
        text = paths.sub(r"\1…/", text)
    return text


def files_of(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in files_of(folder))
