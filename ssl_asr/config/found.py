"""Looks at the files and models that a config names, before anything is loaded."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_asr.config.folders import config_folder, option_names
from ssl_asr.config.readings import readings
from ssl_asr.errors import ConfigError, UserError, closest, exists_already, overwrites
from ssl_asr.textfiles import is_file_name, is_system_text, other_unicode, overwritten, why_not_made

_LINE = '{"audio_filepath": "clip.wav", "duration": 2.5, "text": "some words"}'
# What commands write in a folder of results, and whether it is a folder.
_PARTS = {
    **dict.fromkeys(("checkpoints", "metrics", "predictions", ".hydra"), True),
    **dict.fromkeys(("config.yaml", "results.json", "skipped.jsonl", "train.log", ".lock", ".lock.json"), False),
}
# Commands whose output is one file. `transcribe` and `align` look at all files that they write.
_WRITE_ONE_FILE = ("compare", "dashboard", "lm", "report", "tune_decoding")
_HOW = f"a manifest has one JSON object a line, such as {_LINE}"


def file_errors(name: str, cfg: DictConfig) -> Iterator[UserError]:
    """An error for each manifest that is something else, misspelled name of a model, and output that cannot be made.

    Args:
        name: Name of the command.
        cfg: Config composed by Hydra.
    """
    for key, reading in readings(name).items():
        check = _CHECKS.get(str(reading.role))
        # Whether the output of these commands is a file depends on their format.
        if check is None or (key == "output" and name in ("transcribe", "align")):
            continue
        errors = (check(key, value) for value in _values(cfg, key))
        yield from (error for error in errors if error is not None)
    yield from _overwritten(name, cfg)


def _overwritten(name: str, cfg: DictConfig) -> Iterator[UserError]:
    """An error if ``output`` is a file that another key names, such as a manifest, or one that may not be replaced."""
    inputs = [
        Path(value)
        for key, reading in readings(name).items()
        if reading.role in ("manifest", "input", "model")
        for value in _values(cfg, key)
    ]
    outputs = _values(cfg, "output")
    path = overwritten(map(Path, outputs), inputs)
    if path is not None:
        yield overwrites(path)
    elif name in _WRITE_ONE_FILE and not OmegaConf.select(cfg, "overwrite"):
        # A folder of that name is an error of its own.
        existing = (output for output in outputs if os.path.lexists(output) and not Path(output).is_dir())
        yield from map(exists_already, existing)


def _values(cfg: DictConfig, key: str) -> list[str]:
    """The texts of a key: itself, the items of a list, or the values of a mapping."""
    try:
        value: Any = OmegaConf.select(cfg, key)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return []
    items = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else [plain]
    # Other text is an error of its type.
    return [item for item in items if isinstance(item, str) and is_system_text(item)]


def _manifest_error(key: str, name: str) -> ConfigError | None:
    """An error if a path is not a manifest. A path that does not exist is an error of the command."""
    if key == "data.dev" and name.startswith(("[", "{")) and not Path(name).exists():
        return ConfigError(key, f"is {name}, expected one path", "put further sets under data.test.NAME")
    if not is_file_name(name):
        return None
    try:
        return _manifest_fault(key, name, Path(name))
    except OSError as error:
        return ConfigError(key, f"'{name}' cannot be opened: {error.strerror}", "check its name and permissions")


def _manifest_fault(key: str, name: str, path: Path) -> ConfigError | None:
    if path.is_dir():
        other = ". ssl-asr transcribe takes folders" if key == "manifest" else ""
        return ConfigError(key, f"'{name}' is a folder, expected a manifest (.jsonl)", f"{_HOW}{other}")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(4096)
    text = start.lstrip(b"\xef\xbb\xbf").lstrip()
    if not text or text.startswith(b"{"):
        return None
    if (encoding := other_unicode(start)) is not None:
        return ConfigError(key, f"'{name}' is text in {encoding}, expected UTF-8", "save the file as UTF-8")
    if b"\0" in start:
        other = ". ssl-asr transcribe takes audio" if key == "manifest" else ""
        return ConfigError(key, f"'{name}' is audio or another binary file, expected a manifest (.jsonl)", _HOW + other)
    line = text.splitlines()[0].decode(errors="replace")
    kind = "a table with tabs" if "\t" in line else "a text file"
    shown = line if len(line) <= 60 else f"{line[:60]}…"
    return ConfigError(key, f"'{name}' is {kind} that starts with '{shown}', expected a manifest (.jsonl)", _HOW)


def _model_error(key: str, name: str) -> ConfigError | None:
    """An error if a model is neither a file nor a name of the Hub, or looks like the name of a ``backbone`` option."""
    if not is_file_name(name) or Path(name).exists() or name in option_names("backbone"):
        return None
    hub = re.sub(r"^(https?://)?(www\.)?(huggingface\.co|hf\.co)/", "", name.split("/tree/")[0]).strip("/")
    if hub.count("/") == 1 and (name.endswith("/") or "huggingface.co/" in name or "hf.co/" in name):
        return ConfigError(key, f"no file or folder '{name}'", f"for the model of the Hub, write {key}={hub}")
    if (
        name.startswith(("/", "./", "../", "~"))
        or name.count("/") > 1
        or name.endswith((".ckpt", ".pt", ".safetensors"))
    ):
        return ConfigError(key, f"no file or folder '{name}'", "check the path")
    near = None if "/" in name or key == "backbone.source" else closest(name, option_names("backbone"))
    if near is None:
        return None
    return ConfigError(key, f"no file, folder or backbone option '{name}'", f"did you mean {key}={near}?")


def _output_error(key: str, name: str) -> ConfigError | None:
    """An error if a file or folder cannot be made."""
    path = Path(name)
    fault = why_not_made(path, folder=key != "output")
    for part, is_folder in _PARTS.items() if fault is None and key != "output" else ():
        if fault is None and os.path.lexists(path / part):
            fault = why_not_made(path / part, folder=is_folder)
    return None if fault is None else ConfigError(key, fault, "give another name")


_CHECKS = {"manifest": _manifest_error, "model": _model_error, "output": _output_error}


@lru_cache(maxsize=1)
def backbone_sources() -> dict[str, str]:
    """The ``backbone`` option of each published checkpoint, by the name of the checkpoint."""
    found = {}
    for option in option_names("backbone"):
        path = config_folder() / "backbone" / f"{option}.yaml"
        node: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        source = node.get("backbone", node).get("source")
        if source is not None:
            found[str(source)] = option
    return found


def option_for_checkpoint(name: str) -> str:
    """What to write for the name of a checkpoint in the place of a ``backbone`` option."""
    sources = backbone_sources()
    near = closest(name, list(sources))
    if near is not None and near.lower() == name.lower():
        return f"write backbone={sources[near]}"
    family = sources[near] if near is not None else "wav2vec2_base"
    return f"write an option of its family, and its name as the source: backbone={family} backbone.source={name}"
