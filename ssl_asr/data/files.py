"""Audio files wherever they are: on disk, in a tar, or behind an address.

    clips/a.flac                                     a file
    train/recording.000000.tar::a.flac@1536+34567    a member of a tar: its name, its first byte and its size in bytes
    train/recording.000000.tar::a.flac               the same member, found by its name
    s3://bucket/recording.000000.tar::a.flac@1+2     the same in an object store
    https://host/a.flac                              a file behind an address

A member with its bytes is read by one positioned read, or one range request. The tar is not searched, and no position
in an open file is shared, so that any number of processes read one tar. The header before the member is compared with
its name and size, which finds a tar that was written again. Addresses are read by fsspec, see `ssl_asr.data.remote`.
"""

import io
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ssl_asr.data import remote
from ssl_asr.data.remote import MediaError, is_remote

_MEMBER = re.compile(r"(?P<tar>.+?\.(?:tar|tgz|tar\.\w+))::(?P<member>.+?)(?:@(?P<start>\d+)\+(?P<size>\d+))?", re.S)
# What separates a tar from its member, and the faults that all members of a tar share.
MEMBER = "::"
OF_SHARD = frozenset({"missing_file", "bad_shard", "changed_shard", "compressed_shard", "truncated_shard"})
_REMEDY = "get the shard again, or make its manifest again with ssl-asr prepare"
# Bytes of the header before a member, and the longest name that always is in it.
_HEADER, _LONGEST_NAME = 512, 99
# Bytes that are read from a tar at a time.
_BUFFER = 1 << 16


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a recording are.

    Attributes:
        container: The file or address that holds them: the file of the recording, or a tar.
        member: Name in the tar. None if the container is the recording.
        start: First byte in the tar. None if the member is found by its name.
        size: Number of bytes. None if ``start`` is.
    """

    container: str
    member: str | None = None
    start: int | None = None
    size: int | None = None

    @classmethod
    def of(cls, path: str) -> "Location":
        """The location that a path of a manifest names."""
        found = _MEMBER.fullmatch(path) if MEMBER in path else None
        if found is None:
            return cls(path)
        start, size = found["start"], found["size"]
        return cls(found["tar"], found["member"], *((None, None) if start is None else (int(start), int(size))))

    def __str__(self) -> str:
        span = "" if self.start is None else f"@{self.start}+{self.size}"
        return self.container if self.member is None else f"{self.container}::{self.member}{span}"

    @property
    def is_file(self) -> bool:
        """Whether the recording is a file of its own on disk."""
        return self.member is None and not is_remote(self.container)


@dataclass(frozen=True, slots=True)
class FileKey:
    """A file and its state. A file that has changed has another key.

    ``path`` may name a member of a tar. ``size`` is the size of the member, and the rest is the state of the tar.
    """

    path: str
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> "FileKey":
        """The key of a recording.

        Raises:
            MediaError: It does not exist, is empty or cannot be reached; or a tar is truncated or has other members.
        """
        location = Location.of(str(path))
        if location.is_file:
            return _state_of(str(path), "no such file")
        key = _key_in(str(path), location)
        if key.size == 0:
            raise _empty()
        return key


def joined(folder: str, path: str) -> str:
    """Path of a recording that a manifest in ``folder`` names."""
    location = Location.of(path)
    if is_remote(location.container):
        return path
    return without_parents(str(Path(folder) / location.container)) + path[len(location.container) :]


def without_parents(path: str) -> str:
    """The path without ``..`` after a folder. If the folder is a link, whose parent is elsewhere, the path as it is.

    Example:
        >>> without_parents("data/../recordings/a.wav"), without_parents("../a.wav")
        ('recordings/a.wav', '../a.wav')
    """
    folder, name = os.path.split(path)
    return str(Path(_without_parents(Path.cwd(), folder)) / name) if "/.." in folder else path


@lru_cache(maxsize=4096)
def _without_parents(start: Path, folder: str) -> str:
    """``start`` is the working directory."""
    short = os.path.normpath(folder)
    return short if os.path.realpath(start / short) == os.path.realpath(start / folder) else folder


def placed(path: str, folder: Path, *, within: Path) -> str:
    """The path as a manifest in ``folder`` names the recording: relative if it lies in ``within``, otherwise absolute.

    An address stays as it is.
    """
    container = Location.of(path).container
    if is_remote(container):
        return path
    file = Path(container).absolute()
    inside = file.is_relative_to(within.absolute())
    return (os.path.relpath(file, folder) if inside else str(file)) + path[len(container) :]


def name_of(path: str) -> PurePosixPath:
    """Name of a recording with its suffix: that of its file, or of the member of a tar, without its bytes."""
    location = Location.of(path)
    return PurePosixPath(Path(location.member or location.container).name)


def name_parts(path: str) -> tuple[str, ...]:
    """Folders of a recording and its name, from the root. A tar is a folder."""
    location = Location.of(path)
    if location.is_file:
        return Path(os.path.normpath(Path.cwd() / path)).parts
    base = location.container if is_remote(location.container) else os.path.normpath(Path.cwd() / location.container)
    above = Path(base).with_suffix("") if location.member else Path(base)
    return (*above.parts, *PurePosixPath(location.member or "").parts)


def opened(path: str) -> BinaryIO:
    """Open the bytes of a recording for reading.

    Raises:
        MediaError: See `FileKey.of`.
        OSError: A file cannot be opened.
    """
    location = Location.of(path)
    if location.is_file:
        return Path(path).open("rb")
    if location.member is None:
        return _Bytes(remote.fetched(location.container), name_of(path).name)
    container, start, size = _span(location)
    if is_remote(container):
        data = remote.fetched(container, start - _HEADER, start + size)
        _check_header(data[:_HEADER], location, size)
        if len(data) < _HEADER + size:
            raise _cut_off(start - _HEADER + len(data), start, size)
        return _Bytes(data[_HEADER:], name_of(path).name)
    return cast(BinaryIO, io.BufferedReader(_Part(container, start, size, name_of(path).name), _BUFFER))


class _Bytes(io.BytesIO):
    """Bytes in memory. Libraries look at the suffix of the name, as that of a file."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class _Part(io.RawIOBase):
    """Bytes of a file, by positioned reads. Libraries look at the suffix of the name, as that of a file."""

    def __init__(self, path: str, start: int, size: int, name: str) -> None:
        self.name = name
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte. Returns its position in the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Position in the part."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes into a buffer. Returns their number."""
        data = os.pread(self._file, max(0, min(len(buffer), self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._file)
        super().close()


# Members -----------------------------------------------------------------------------------------------------------


def _key_in(path: str, location: Location) -> FileKey:
    """The key of a recording that is not a file of its own."""
    if location.member is None:
        return FileKey(path, remote.size_of(location.container), 0, 0)
    if location.container.rpartition(".")[2].lower() != "tar":
        what = "is in a compressed tar, of which single members cannot be read"
        raise MediaError(what, "decompress the tar", "compressed_shard")
    container, start, size = _span(location)
    if is_remote(container):
        return FileKey(path, size, 0, 0)
    state = _state_of(container, "no such shard")
    if start + size > state.size:
        raise _cut_off(state.size, start, size)
    with Path(container).open("rb") as file:
        _check_header(os.pread(file.fileno(), _HEADER, max(0, start - _HEADER)), location, size)
    return FileKey(path, size, state.modified_ns, state.inode)


def _span(location: Location) -> tuple[str, int, int]:
    """The tar, on disk if it is cached, the first byte of a member, and its size."""
    container = remote.local_copy(location.container) if is_remote(location.container) else location.container
    if location.start is not None and location.size is not None:
        return container, location.start, location.size
    assert location.member is not None
    found = members(container).get(location.member)
    if found is None:
        raise MediaError(f"the shard has no member '{location.member}'", _REMEDY, "missing_member")
    return container, *found


def members(container: str) -> Mapping[str, tuple[int, int]]:
    """First byte and size of each file in a tar, by name. The last of equal names counts.

    The members of a truncated tar are those that begin in it.

    Raises:
        MediaError: It does not exist, or is not a tar.
    """
    key = FileKey(container, 0, 0, 0) if is_remote(container) else _state_of(container, "no such shard")
    return _members(key)


def _container(path: str) -> BinaryIO:
    return remote.opened(path) if is_remote(path) else Path(path).open("rb")


@lru_cache(maxsize=256)
def _members(key: FileKey) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with _container(key.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        found[member.name] = (member.offset_data, member.size)
            except tarfile.ReadError:
                # The tar ends in a member, which is found to be too short when it is read.
                pass
    except (tarfile.TarError, OSError) as error:
        raise MediaError(f"the shard is not a tar: {error}", _REMEDY, "bad_shard") from None
    return found


def _check_header(header: bytes, location: Location, size: int) -> None:
    """Check that the header before a member is its header."""
    assert location.member is not None
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        what = f"the shard has no member at byte {location.start:,}"
        raise MediaError(what, _REMEDY, "changed_shard") from None
    # Longer names and names that are not ASCII are in a block of their own, and shortened here.
    is_short = location.member.isascii() and len(location.member) <= _LONGEST_NAME
    if found.size != size or (is_short and found.name != location.member):
        what = f"the shard has '{found.name}' of {found.size:,} bytes there, expected {size:,} bytes"
        raise MediaError(what, _REMEDY, "changed_shard")


def _cut_off(end: int, start: int, size: int) -> MediaError:
    what = f"the shard ends at byte {end:,}, before the end of this member at {start + size:,}"
    return MediaError(what, "the shard is truncated: get it again", "truncated_shard")


def _state_of(path: str, absent: str) -> FileKey:
    try:
        found = Path(path).stat() if Path(path).is_file() else None
    except (OSError, ValueError) as error:
        raise unopened(error) from None
    if found is None:
        raise MediaError(absent, "check audio_filepath", "missing_file")
    if found.st_size == 0:
        raise _empty()
    return FileKey(path, found.st_size, found.st_mtime_ns, found.st_ino)


def unopened(error: Exception) -> MediaError:
    """The error of a file that cannot be opened."""
    what = f"cannot be opened: {getattr(error, 'strerror', None) or error}"
    return MediaError(what, "check its name and permissions", "unreadable_file")


def _empty() -> MediaError:
    return MediaError("empty file (0 bytes)", "get the file again", "empty_file")
