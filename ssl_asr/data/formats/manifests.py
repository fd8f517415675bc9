"""Our own manifests and NeMo's, which are JSON Lines with the same keys. Also the JSON Lines of ``audiofolder``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_asr.data.folders import is_manifest
from ssl_asr.data.formats.rows import Found, ReadOptions, Row
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.remote import is_remote
from ssl_asr.textfiles import to_json, written_whole


def manifests_in(folder: Path) -> list[Path]:
    """Manifests in a folder, not below it."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_manifest(path)]


def read_manifests(path: Path, options: ReadOptions) -> Found:
    """Rows of a manifest, or of all manifests in a folder. The name of a file is the split: ``train.jsonl``.

    NeMo's ``train_manifest.json`` is ``train`` too. Lines without a text are left out.

    Raises:
        ManifestError, UserErrors: Lines are invalid. Lists all of them.
    """
    found = Found()
    for file in manifests_in(path) if path.is_dir() else [path]:
        split = file.stem.removesuffix("_manifest") or "all"
        for line in read_manifest(file, require_text=False, unique_ids=False, measure=False):
            duration = line.duration if line.duration == line.duration else None
            tags = dict(line.tags)
            for key in ("lang", "task"):
                if getattr(line, key) is not None:
                    tags[key] = getattr(line, key)
            if line.references:
                tags["references"] = list(line.references)
            if line.weight != 1.0:
                tags["weight"] = line.weight
            found.rows.append(
                Row(
                    id=line.id,
                    audio=_moved(line.audio_filepath, file, options.audio_dir),
                    text=line.text,
                    split=split,
                    offset=line.offset,
                    duration=duration,
                    channel=line.channel,
                    tags=tags,
                    where=line.where,
                )
            )
    return found


def _moved(path: str, manifest: Path, audio_dir: Path | None) -> str:
    """The path of a manifest's audio, below ``audio_dir`` if there is one. Absolute paths stay."""
    if audio_dir is None or is_remote(path) or not Path(path).is_relative_to(manifest.parent):
        return path
    return str(audio_dir / Path(path).relative_to(manifest.parent))


@dataclass(frozen=True, slots=True)
class Shards:
    """How shards are written.

    Attributes:
        size: Number of utterances in a shard.
        address: Address of the output folder that the shards are named by. Default: None (relative to the manifest).
    """

    size: int = 1000
    address: str | None = None


DEFAULT_SHARDS = Shards()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a writer writes.

    Attributes:
        folder: Folder that files are written in. They are moved to the output folder when all are whole.
        place: Path of an audio file as it is written, from its absolute path.
        home: The output folder.
        shards: How shards are written.
        progress: Show a progress bar.
    """

    folder: Path
    place: Callable[[str], str]
    home: Path
    shards: Shards = DEFAULT_SHARDS
    progress: bool = False


def write_manifest(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write ``SPLIT.jsonl``. Returns notes, of which there are none."""
    _write(target.folder / f"{split}.jsonl", target, rows)
    return []


def write_nemo(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write ``SPLIT_manifest.json``, as NeMo names its manifests."""
    _write(target.folder / f"{split}_manifest.json", target, rows)
    return []


def _write(path: Path, target: Target, rows: Sequence[Row]) -> None:
    with written_whole(path) as file:
        file.writelines(to_json(row.plain(target.place)) + "\n" for row in rows)
