"""Encoder states on disk: safetensors shards, and an index that grows with them."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_asr.data.files import name_of
from ssl_asr.data.identity import content_digest
from ssl_asr.errors import CheckpointError
from ssl_asr.textfiles import naming, sync_folder
from ssl_asr.types import Utterance

FORMAT = 3
_SHARD_BYTES = 256 << 20


def audio_key(utterance: Utterance) -> str:
    """Key of the audio of an utterance: name and content of the file, offset, duration and channel.

    The key stays equal if the folder moves, and differs for a file of equal name and size with other audio, such as
    the enhanced copy of a noisy recording. The text is not part of it, because encoder states do not depend on it.
    """
    name, content = name_of(utterance.audio_filepath).name, content_digest(utterance.audio_filepath)
    return json.dumps([name, content, utterance.offset, utterance.duration, utterance.channel])


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index.

    Attributes:
        id: Utterance id.
        audio: Result of `audio_key`.
        shard: Name of the file with the states.
        frames: Number of frames of speech. Frames of silence may follow them.
    """

    id: str
    audio: str
    shard: str
    frames: int


class StateStore:
    """A folder of encoder states, float32 or float16, written once and read by utterance id.

        origin.json                    the model, layers and settings that the states come from
        index-W.jsonl                  a line for each utterance that writer W wrote
        states-W-NNNNN.safetensors     shards of writer W: tensors (layers, frames, features) by utterance id

    A writer W is the rank of a process and a random name, so that several runs may write to a folder at once. Lines are
    written after their shard is complete, so a crash loses at most one shard.

    Args:
        folder: Created if it does not exist.
        origin: Plain data for ``origin.json``. A folder with another origin is refused. Default: None (any origin).
        rank: Rank of the writing process.
        shard_bytes: Size in bytes at which a shard is closed.

    Raises:
        CheckpointError: The folder has another origin, or ``origin`` is None and the folder has no states.
    """

    def __init__(
        self, folder: Path, *, origin: dict[str, Any] | None = None, rank: int = 0, shard_bytes: int = _SHARD_BYTES
    ) -> None:
        self.folder, self.rank, self.shard_bytes = folder, rank, shard_bytes
        self._entries: dict[str, Entry] = {}
        self._waiting: dict[str, tuple[Entry, Tensor]] = {}
        self._waiting_bytes = 0
        self._shards = 0
        self._name = secrets.token_hex(4)
        self.origin = self._check_origin(origin)
        self.refresh()

    def _check_origin(self, origin: dict[str, Any] | None) -> dict[str, Any]:
        path = self.folder / "origin.json"
        if not path.is_file():
            if origin is None:
                raise CheckpointError(
                    str(self.folder), "has no states (no origin.json)", "write states with ssl-asr extract"
                )
            self._write_origin({"format": FORMAT, **origin})
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = found if origin is None else json.loads(json.dumps({"format": FORMAT, **origin}))
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            shown = "; ".join(f"{key} is {found.get(key)!r}, expected {wanted.get(key)!r}" for key in differing)
            raise CheckpointError(str(self.folder), f"has states with another origin ({shown})", "use another folder")
        return found

    def _write_origin(self, origin: dict[str, Any]) -> None:
        """Write ``origin.json`` unless another process has just done so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "origin.json"
        partial = path.with_name(f".origin.{self._name}.partial")
        try:
            with naming(path):
                partial.write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
            # A second name, in contrast to a new one, never replaces a file.
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # The file system has no second names.
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Read the index lines that all writers have written so far. Lines of lost shards are left out."""
        shards = {path.name for path in self.folder.glob("states-*.safetensors")}
        for path in sorted(self.folder.glob("index-*.jsonl")):
            text = path.read_text(encoding="utf-8")
            # A crash may leave an incomplete last line.
            for line in text.split("\n")[:-1]:
                entry = Entry(**json.loads(line))
                if entry.shard in shards:
                    self._entries[entry.id] = entry

    def __contains__(self, utterance_id: str) -> bool:
        """Whether the store has states of the utterance, on disk or waiting to be written."""
        return utterance_id in self._entries or utterance_id in self._waiting

    def __len__(self) -> int:
        return len(self._entries) + len(self._waiting)

    def totals(self) -> tuple[int, int]:
        """Number of utterances on disk, and number of their frames of speech."""
        return len(self._entries), sum(entry.frames for entry in self._entries.values())

    def gigabytes(self) -> float:
        """Size of all shards, in GB."""
        return sum(path.stat().st_size for path in self.folder.glob("states-*.safetensors")) / 1e9

    def check(self, utterances: Iterable[Utterance]) -> None:
        """Check that the states of utterances in the store were computed from their audio.

        Raises:
            CheckpointError: The states of an utterance are those of other audio, or two utterances with other audio
                have one id.
        """
        first: dict[str, Utterance] = {}
        for utterance in utterances:
            other = first.setdefault(utterance.id, utterance)
            if other is not utterance and audio_key(other) != audio_key(utterance):
                places = f"{other.where} and {utterance.where}"
                what = f"states are kept by id, and '{utterance.id}' is other audio at {places}"
                raise CheckpointError(str(self.folder), what, "give each utterance an id of its own")
            entry = self._entries.get(utterance.id)
            if entry is not None and entry.audio != audio_key(utterance):
                what = f"has states of '{utterance.id}' ({utterance.where}) from other audio of that id"
                raise CheckpointError(str(self.folder), what, "use another folder, or delete this one")

    def put(self, utterance: Utterance, states_LFD: Tensor, frames: int) -> None:
        """Add the states of an utterance. They are written to disk when their shard is full.

        Args:
            utterance: An utterance that is already in the store is ignored.
            states_LFD: Its states without padding.
            frames: Number of frames of speech.
        """
        if utterance.id in self:
            return
        # Copy: a slice would keep the whole batch in memory, and safetensors refuses tensors that share memory.
        states_LFD = states_LFD.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        entry = Entry(utterance.id, audio_key(utterance), self._next_shard(), frames)
        self._waiting[utterance.id] = (entry, states_LFD)
        self._waiting_bytes += states_LFD.nbytes
        if self._waiting_bytes >= self.shard_bytes:
            self.flush()

    @property
    def _writer(self) -> str:
        return f"{self.rank}-{self._name}"

    def _next_shard(self) -> str:
        return f"states-{self._writer}-{self._shards:05d}.safetensors"

    def flush(self) -> None:
        """Write all waiting states: first the shard, then its index lines."""
        if not self._waiting:
            return
        path = self.folder / self._next_shard()
        _write_shard({key: states for key, (_, states) in self._waiting.items()}, path)
        self._shards += 1
        entries = [replace(entry, shard=path.name) for entry, _ in self._waiting.values()]
        index = self.folder / f"index-{self._writer}.jsonl"
        with naming(index), index.open("a", encoding="utf-8") as file:
            for entry in entries:
                row = {name: getattr(entry, name) for name in Entry.__slots__}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries |= {entry.id: entry for entry in entries}
        self._waiting, self._waiting_bytes = {}, 0

    def __getitem__(self, utterance_id: str) -> tuple[Tensor, int]:
        """States of shape (layers, frames, features), and the number of frames of speech.

        Raises:
            KeyError: The store has no states of the utterance.
        """
        if utterance_id in self._waiting:
            entry, states_LFD = self._waiting[utterance_id]
        else:
            entry = self._entries[utterance_id]
            states_LFD = _opened(self.folder / entry.shard).get_tensor(utterance_id)
        return states_LFD, entry.frames

    def __iter__(self) -> Iterator[str]:
        """Ids of all utterances in the store."""
        yield from self._entries
        yield from self._waiting


@lru_cache(maxsize=64)
def _opened(shard: Path) -> Any:
    # Cached, because reading the header of a shard takes longer than reading one utterance.
    return safe_open(shard, framework="pt", device="cpu")


def _write_shard(states: dict[str, Tensor], path: Path) -> None:
    """Write a shard as a whole.

    Raises:
        CheckpointError: It cannot be written, for example because the disk is full. Names the number of bytes.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(states, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        size, free = sum(each.nbytes for each in states.values()), shutil.disk_usage(path.parent).free
        what = f"cannot be written: {error}. It needs {size:,} bytes, and {free:,} are free"
        raise CheckpointError(str(path), what, "make room, or use another folder") from None
    finally:
        partial.unlink(missing_ok=True)


def state_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and values of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
