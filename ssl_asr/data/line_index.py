"""The packed index of a large manifest: where its lines are, checked once and kept beside the manifest.

    train.jsonl            {"audio_filepath": ..., "duration": 3.1, "text": ...}      every line is checked once
    .train.jsonl.index     start, length, line number, duration, hash of the id       read as long as the bytes of
                                                                                      train.jsonl have the same SHA-256

An index holds no text. A manifest needs 32 bytes of memory for each line, and reads lines from the file on access.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import PARTIAL

# Changes with the checks of lines and with the contents of the file.
_VERSION = 2
# Manifests with fewer lines are checked in less than a second.
_FEWEST_LINES = 100_000
# Smaller manifests are kept in memory.
_IN_MEMORY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_ARRAYS = {"starts": np.int64, "lengths": np.uint32, "numbers": np.uint32, "durations": np.float64, "ids": np.uint64}


@dataclass(frozen=True, slots=True)
class LineIndex:
    """What is known about the utterances of a manifest without reading their lines.

    Attributes:
        starts_N: int64, byte offset of each line.
        lengths_N: uint32, bytes of each line without its end.
        numbers_N: uint32, number of each line, from 1.
        durations_N: float64, seconds. NaN where the line has none.
        ids_N: uint64, hash of each id, see `id_hash`.
        has_texts: Whether every line has ``text``.
    """

    starts_N: NDArray[np.int64]
    lengths_N: NDArray[np.uint32]
    numbers_N: NDArray[np.uint32]
    durations_N: NDArray[np.float64]
    ids_N: NDArray[np.uint64]
    has_texts: bool

    def __len__(self) -> int:
        return len(self.starts_N)

    def select(self, indices_N: NDArray[np.int64]) -> "LineIndex":
        """The index of the lines at these places."""
        return replace(self, **{f"{name}_N": getattr(self, f"{name}_N")[indices_N] for name in _ARRAYS})

    @classmethod
    def joined(cls, indices: Sequence["LineIndex"]) -> "LineIndex":
        """The lines of several indices, one after the other."""
        names = [f"{name}_N" for name in _ARRAYS]
        arrays = {name: np.concatenate([getattr(index, name) for index in indices]) for name in names}
        return cls(**arrays, has_texts=all(index.has_texts for index in indices))


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive whole lines of a manifest: byte offset, number of bytes, and number of the first line, from 1."""

    start: int
    length: int
    number: int


def id_hash(utterance_id: str) -> int:
    """A 64-bit hash of an id. Equal in every process."""
    digest = hashlib.blake2b(utterance_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class ManifestBytes:
    """The bytes of a manifest: in memory, or read from the file on access if there are more than 64 MiB of them.

    Args:
        path: Path of the manifest, for errors and for reading.
        data: The bytes. Default: None (read from the file).
    """

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self._path = path
        self._data = None if data is None else np.frombuffer(data, dtype=np.uint8)
        self._file, self._status = -1, (0, 0, 0)
        if data is None:
            status = path.stat()
            self._status = (status.st_ino, status.st_size, status.st_mtime_ns)
            if status.st_size <= _IN_MEMORY_BYTES:
                self._data = np.frombuffer(path.read_bytes(), dtype=np.uint8)

    def __getstate__(self) -> dict[str, object]:
        # A process that is spawned opens the file itself.
        return {**self.__dict__, "_file": -1}

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, start: int, length: int) -> bytes:
        """The bytes from ``start`` on.

        Raises:
            ManifestError: The file has changed since it was opened.
        """
        if self._data is not None:
            return self._data[start : start + length].tobytes()
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self._file)
        if (status.st_ino, status.st_size, status.st_mtime_ns) != self._status:
            remedy = "leave a manifest as it is while it is in use, and start again"
            raise ManifestError(str(self._path), "has changed since it was opened", remedy)
        return os.pread(self._file, length, start)

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Consecutive whole lines, about 1 MiB at a time, each with its byte offset."""
        start, size = 0, len(self._data) if self._data is not None else self._status[1]
        while start < size:
            length = min(_CHUNK_BYTES, size - start)
            chunk = self.read(start, length)
            while start + length < size and (end := chunk.rfind(b"\n")) < 0:
                length = min(2 * length, size - start)
                chunk = self.read(start, length)
            if start + length < size:
                chunk = chunk[: end + 1]
            yield start, chunk
            start += len(chunk)

    def survey(self) -> tuple[str, list[Block]]:
        """SHA-256 of the bytes, and the blocks of lines that they consist of."""
        found, blocks, number = hashlib.sha256(), list[Block](), 1
        for start, chunk in self._chunks():
            found.update(chunk)
            blocks.append(Block(start, len(chunk), number))
            number += chunk.count(b"\n")
        return found.hexdigest(), blocks


def index_path(manifest: Path) -> Path:
    """Where the index of a manifest is kept: ``.NAME.index`` beside it."""
    return manifest.with_name(f".{manifest.name}.index")


def stored_index(manifest: Path, digest: str) -> LineIndex | None:
    """The index that is kept beside a manifest, if it is that of these bytes; otherwise None.

    Args:
        manifest: Path of the manifest.
        digest: SHA-256 of its bytes.
    """
    stored = load_arrays(index_path(manifest), f"{_VERSION} {digest}", [*_ARRAYS, "has_texts"])
    if stored is None:
        return None
    has_texts = bool(stored.pop("has_texts"))
    return LineIndex(**{f"{name}_N": array for name, array in stored.items()}, has_texts=has_texts)


def is_large(index: LineIndex) -> bool:
    """Whether what is known about a manifest is kept beside it."""
    return len(index) >= _FEWEST_LINES


def store_index(manifest: Path, digest: str, index: LineIndex) -> None:
    """Keep the index of a large manifest beside it. Does nothing for a small one, or where the folder is read-only."""
    if not is_large(index):
        return
    arrays = {name: getattr(index, f"{name}_N") for name in _ARRAYS}
    store_arrays(index_path(manifest), f"{_VERSION} {digest}", {**arrays, "has_texts": np.array(index.has_texts)})


def load_arrays(path: Path, key: str, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Arrays that `store_arrays` wrote, or None if the file is missing, damaged, or has another key."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names} if str(stored["key"]) == key else None
    # The CRC of a damaged file differs, its directory cannot be read, or an array is missing.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def store_arrays(path: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays in a file, with the key of what they were made from. Does nothing where the folder is read-only."""
    # Several processes of a run may write it at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.array(key), **arrays)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
