"""States of utterances on disk: safetensors shards and an index that grows as they are made."""

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

from ssl_asr.errors import CheckpointError
from ssl_asr.types import Utterance

FORMAT = 1
_SHARD_BYTES = 256 << 20


def audio_key(utterance: Utterance) -> str:
    """What an utterance's audio is known by: it is the same after a folder moved, another after an edit.

    The file's name and size, offset, duration and channel; not the text, of which states do not depend.
    """
    path = Path(utterance.audio_filepath)
    size = path.stat().st_size if path.is_file() else None
    return json.dumps([path.name, size, utterance.offset, utterance.duration, utterance.channel])


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index: which audio, where its states are, and how many frames of speech they begin with.

    Frames of silence may follow those of speech.
    """

    id: str
    audio: str
    shard: str
    frames: int


class StateStore:
    """A folder of states, float32 or float16, written once and read by id.

    ``origin.json`` says what they are states of; ``index-R.jsonl`` has a line for each utterance that process
    ``R`` wrote and ``states-R-NNNNN.safetensors`` its tensors, ``(layers, frames, features)`` by id. A line is
    written after its shard is whole, so that a crash loses the last shard at most and the rest stays.

    Args:
        folder: made where there is none.
        origin: plain data; a folder of another origin is refused. None reads whatever there is.
        rank: of the writing process.
        shard_bytes: a shard is closed once it has so many.

    Raises:
        CheckpointError: the folder holds states of something else, or cannot be read.
    """

    def __init__(
        self, folder: Path, *, origin: dict[str, Any] | None = None, rank: int = 0, shard_bytes: int = _SHARD_BYTES
    ) -> None:
        self.folder, self.rank, self.shard_bytes = folder, rank, shard_bytes
        self._entries: dict[str, Entry] = {}
        self._waiting: dict[str, tuple[Entry, Tensor]] = {}
        self._waiting_bytes = 0
        self.origin = self._agree(origin)
        self.refresh()

    def _agree(self, origin: dict[str, Any] | None) -> dict[str, Any]:
        path = self.folder / "origin.json"
        if not path.is_file():
            if origin is None:
                raise CheckpointError(str(self.folder), "holds no states (no origin.json)", "write some with extract")
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".origin.{os.getpid()}.partial")
            partial.write_text(json.dumps({"format": FORMAT, **origin}, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
            return {"format": FORMAT, **origin}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = found if origin is None else json.loads(json.dumps({"format": FORMAT, **origin}))
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            shown = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
            raise CheckpointError(str(self.folder), f"holds states of something else ({shown})", "use another folder")
        return found

    def refresh(self) -> None:
        """Read what every process has written so far."""
        for path in sorted(self.folder.glob("index-*.jsonl")):
            text = path.read_text(encoding="utf-8")
            # A crash may leave half a line at the end.
            for line in text[: text.rfind("\n") + 1].splitlines():
                entry = Entry(**json.loads(line))
                self._entries[entry.id] = entry

    def __contains__(self, utterance_id: str) -> bool:
        """Whether the utterance's states are here, on disk or about to be."""
        return utterance_id in self._entries or utterance_id in self._waiting

    def __len__(self) -> int:
        return len(self._entries) + len(self._waiting)

    def totals(self) -> tuple[int, int]:
        """Utterances on disk, and their frames of speech."""
        return len(self._entries), sum(entry.frames for entry in self._entries.values())

    def gigabytes(self) -> float:
        """The size of the shards."""
        return sum(path.stat().st_size for path in self.folder.glob("states-*.safetensors")) / 1e9

    def check(self, utterances: Iterable[Utterance]) -> None:
        """Compare the audio of those that are here with what it was when their states were made.

        Raises:
            CheckpointError: one has other audio now.
        """
        for utterance in utterances:
            entry = self._entries.get(utterance.id)
            if entry is not None and entry.audio != audio_key(utterance):
                what = f"'{utterance.id}' ({utterance.where}) had other audio when its states were made"
                raise CheckpointError(str(self.folder), what, "use another folder, or remove this one")

    def put(self, utterance: Utterance, states_LFD: Tensor, frames: int) -> None:
        """Keep an utterance's states, without padding; on disk with the shard they are in."""
        if utterance.id in self:
            return
        # A copy: a slice would keep the whole batch alive, and safetensors refuses tensors that share memory.
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
        """Write what waits: the shard whole, then its lines."""
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
        """States ``(layers, frames, features)`` of an utterance, and its frames of speech.

        Raises:
            KeyError: there are none.
        """
        if utterance_id in self._waiting:
            entry, states_LFD = self._waiting[utterance_id]
        else:
            entry = self._entries[utterance_id]
            states_LFD = _opened(self.folder / entry.shard).get_tensor(utterance_id)
        return states_LFD, entry.frames

    def __iter__(self) -> Iterator[str]:
        """Ids of the utterances whose states are here."""
        yield from self._entries
        yield from self._waiting


@lru_cache(maxsize=64)
def _opened(shard: Path) -> Any:
    # Opened once: reading the header of a shard costs more than reading an utterance from it.
    return safe_open(shard, framework="pt", device="cpu")


def _end_last_line(index: Path) -> None:
    """Drop half a line that a crash left at the end, so that the next one begins at a line's start."""
    if index.is_file():
        content = index.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with index.open("r+b") as file:
                file.truncate(whole)


def state_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Sha256 over names and values, so that other weights are known for others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
