"""Hugging Face audio datasets: on disk, as Parquet files, or by name (extra ``datasets``). Audio is written to FLAC.

Rows are streamed. The library decodes no audio, so that all audio is read by `ssl_asr.data.media`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import soundfile

from ssl_asr.console import tracked
from ssl_asr.data.formats.columns import GUESSES, Reader, guess, guessed
from ssl_asr.data.formats.rows import Found, ReadOptions, split_name
from ssl_asr.data.media import open_source
from ssl_asr.data.remote import MediaError
from ssl_asr.errors import ConfigError, optional_import
from ssl_asr.textfiles import is_hub_name, to_json, written_whole

# File beside the audio that says which dataset it comes from.
_ORIGIN = ".dataset.json"


def _library() -> Any:
    with optional_import("kind=huggingface", "datasets", "datasets"):
        import datasets
    return datasets


def is_huggingface(path: Path) -> bool:
    """Whether a path is a dataset as ``save_to_disk`` writes it, has Parquet files, or may be a name on the Hub."""
    if path.is_dir():
        saved = (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()
        return saved or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return len(path.parts) == 2 and not path.is_absolute() and is_hub_name(path.as_posix())


def read_huggingface(path: Path, options: ReadOptions) -> Found:
    """Rows of a dataset. Its audio is written to ``audio/SPLIT/`` in the output folder, and not again if it is there.

    Raises:
        ConfigError: The library is not installed, the dataset cannot be loaded, or has no column of audio or text; or
            the folder of audio has files of something else.
    """
    datasets = _library()
    found = Found()
    folder = options.output / "audio"
    try:
        splits = _load(datasets, path, options.subset)
        _claim(folder, {"dataset": str(path), "subset": options.subset})
        for name, rows in splits.items():
            _read(found, datasets, rows, split_name(name), f"{path}:{name}", folder, options)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "check the name, the subset and the network"
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            remedy = "unset HF_HUB_OFFLINE, or give a folder that save_to_disk wrote"
        raise ConfigError("input", f"{path} cannot be loaded: {reason}", remedy) from None
    return found


def _load(datasets: Any, path: Path, subset: str | None) -> dict[str, Any]:
    """The rows of each split."""
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()):
        loaded = datasets.load_from_disk(str(path))
    elif path.exists():
        files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
        named: dict[str, list[str]] = {}
        for file in files:
            named.setdefault(_split_of(file, path), []).append(str(file))
        loaded = datasets.load_dataset("parquet", data_files=named, streaming=True)
    else:
        loaded = datasets.load_dataset(path.as_posix(), subset, streaming=True)
    return dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or "all"): loaded}


def _split_of(file: Path, folder: Path) -> str:
    """The split of a Parquet file, from its name (``train-00000-of-00002.parquet``) or its folder."""
    stem = re.sub(r"[-_.]?\d{2,}(-of-\d+)?.*", "", file.stem)
    return stem or (file.parent.name if file.parent != folder else "all")


def _claim(folder: Path, origin: dict[str, Any]) -> None:
    """Take the folder of audio for this dataset.

    Raises:
        ConfigError: It has files of something else.
    """
    mark = folder / _ORIGIN
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == origin:
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError("output_dir", f"{folder} has files of something else", "give another folder")
    with written_whole(mark) as file:
        file.write(to_json(origin) + "\n")


def _read(found: Found, datasets: Any, rows: Any, split: str, where: str, folder: Path, options: ReadOptions) -> None:
    features = rows.features or {}
    for name, feature in features.items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(name, datasets.Audio(decode=False))
    labels = {name: each for name, each in features.items() if isinstance(each, datasets.ClassLabel)}
    given = {key: name for key, name in options.columns.items() if key in GUESSES}
    reader: Reader | None = None
    total = len(rows) if hasattr(rows, "__len__") else None
    for number, record in enumerate(_shown(rows, split, total, options)):
        plain = {key: labels[key].int2str(v) if key in labels and v is not None else v for key, v in record.items()}
        if reader is None:
            reader = Reader(options.output, _columns(found, plain, given, where), options, split)
        here = f"{where}:{number}"
        name = str(plain.get(reader.columns.get("id", "")) or "")
        try:
            path = _file_of(plain[reader.columns["audio"]], folder / split, name, number)
        except MediaError as error:
            found.skip(name or here, error.reason, f"{error.what}: {error.remedy}", here)
            continue
        reader.add(found, {**plain, reader.columns["audio"]: "" if path is None else str(path.absolute())}, here)


def _shown(rows: Any, split: str, total: int | None, options: ReadOptions) -> Iterator[dict[str, Any]]:
    return iter(tracked(rows, f"read {split}", total=total, shown=options.progress))


def _columns(found: Found, record: Mapping[str, Any], given: Mapping[str, str], where: str) -> dict[str, str]:
    audio = [name for name, value in record.items() if isinstance(value, dict) and {"bytes", "path"} & value.keys()]
    if not audio and "audio" not in given:
        what = f"no column of {where} has audio: it has {', '.join(record)}"
        raise ConfigError("columns.audio", what, "give a dataset with a column of type Audio")
    own = {"audio": audio[0], **given} if audio else dict(given)
    columns = guess(list(record), own, where)
    found.note(guessed(columns, given, where))
    # A number of seconds of another column would be about the source of the audio.
    return {key: name for key, name in columns.items() if key not in ("offset", "end", "duration") or key in given}


def _file_of(audio: Any, folder: Path, name: str, number: int) -> Path | None:
    """The file of an audio value: its path if it is a file here, and otherwise a FLAC file that is written.

    Raises:
        MediaError: The audio cannot be decoded.
    """
    if not isinstance(audio, dict):
        return None
    path, data = audio.get("path"), audio.get("bytes")
    if data is None:
        return Path(path) if path else None
    stem = re.sub(r"[^\w.-]+", "_", name or Path(path or "").stem)[:100].strip(".")
    target = folder / f"{number:07d}{'_' if stem else ''}{stem}.flac"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_flac(target, data, Path(path or "").suffix)
    return target


def _write_flac(target: Path, data: bytes, suffix: str) -> None:
    """Write encoded audio as FLAC, at its sample rate and with its channels."""
    partial = target.with_name(f"{target.name}.part")
    source_file = target.with_name(f"{target.name}.source{suffix}")
    try:
        if data[:4] == b"fLaC":
            partial.write_bytes(data)
        else:
            source_file.write_bytes(data)
            source = open_source(source_file)
            try:
                samples = source.read(0, source.frames)
                if samples.shape[1] > 8:
                    raise MediaError(f"has {samples.shape[1]} channels, and FLAC has at most 8", "mix them", "channels")
                soundfile.write(partial, samples, source.rate, format="FLAC", subtype="PCM_16")
            finally:
                source.close()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        source_file.unlink(missing_ok=True)
