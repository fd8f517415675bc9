"""Encoder states on disk: safetensors shards, and an index that grows with them."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_asr.data.identity import content_digest
from ssl_asr.errors import CheckpointError
from ssl_asr.types import Utterance

FORMAT = 2
_SHARD_BYTES = 256 << 20


def audio_key(utterance: Utterance) -> str:
    """Key of the audio of an utterance: name and content of the file, offset, duration and channel.

    The key stays equal if the folder moves, and differs for a file of equal name and size with other audio, such as
    the enhanced copy of a noisy recording. The text is not part of it, because encoder states do not depend on it.
    """
    path = Path(utterance.audio_filepath)
    content = content_digest(path)
    return json.dumps([path.name, content, utterance.offset, utterance.duration, utterance.channel])


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
        index-R.jsonl                  a line for each utterance that rank R wrote
        states-R-NNNNN.safetensors     shards of rank R: tensors (layers, frames, features) by utterance id

    Lines are written after their shard is complete, so a crash loses at most one shard.

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
        self.origin = self._check_origin(origin)
        self.refresh()

    def _check_origin(self, origin: dict[str, Any] | None) -> dict[str, Any]:
        path = self.folder / "origin.json"
        if not path.is_file():
            if origin is None:
                raise CheckpointError(
                    str(self.folder), "has no states (no origin.json)", "write states with ssl-asr extract"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".origin.{os.getpid()}.partial")
            partial.write_text(json.dumps({"format": FORMAT, **origin}, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
            return {"format": FORMAT, **origin}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = found if origin is None else json.loads(json.dumps({"format": FORMAT, **origin}))
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            shown = "; ".join(f"{key} is {found.get(key)!r}, expected {wanted.get(key)!r}" for key in differing)
            raise CheckpointError(str(self.folder), f"has states with another origin ({shown})", "use another folder")
        return found

    def refresh(self) -> None:
        """Read the index lines that all ranks have written so far."""
        for path in sorted(self.folder.glob("index-*.jsonl")):
            text = path.read_text(encoding="utf-8")
            # A crash may leave an incomplete last line.
            for line in text.split("\n")[:-1]:
                entry = Entry(**json.loads(line))
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

    def _next_shard(self) -> str:
        own = f"states-{self.rank}-"
        used = {entry.shard for entry in self._entries.values() if entry.shard.startswith(own)}
        return f"{own}{len(used):05d}.safetensors"

    def flush(self) -> None:
        """Write all waiting states: first the shard, then its index lines."""
        if not self._waiting:
            return
        path = self.folder / self._next_shard()
        partial = path.with_name(f".{path.name}.partial")
        save_file({key: states for key, (_, states) in self._waiting.items()}, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        entries = [entry for entry, _ in self._waiting.values()]
        index = self.folder / f"index-{self.rank}.jsonl"
        _end_last_line(index)
        with index.open("a", encoding="utf-8") as file:
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


def _end_last_line(index: Path) -> None:
    """Remove an incomplete last line, which a crash may have left."""
    if index.is_file():
        content = index.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with index.open("r+b") as file:
                file.truncate(whole)


def state_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names and values of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
