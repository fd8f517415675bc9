"""Which recording a row is about, whatever its id says.

    recording   file, channel and task          shares a name and an output file
    identity    recording, span and language    transcribed once

A file is its folder, with symbolic links resolved, and its name. ``./a.wav``, ``a.wav`` and ``../here/a.wav`` are one
file. A symbolic link to a file is a recording with the name of the link. A member of a tar is the tar, with its
folder resolved, and the rest as it is written. An address is as it is written.
"""

import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from ssl_asr.data.files import FileKey, Location, opened
from ssl_asr.data.remote import MediaError, is_remote
from ssl_asr.types import Seconds

_PART_BYTES = 64 << 10
# Files of utterances are read whole. Long recordings would take as long as decoding them.
_WHOLE_BYTES = 4 << 20

RecordingKey = tuple[str, int | None, str | None]
"""File, channel and task."""

Identity = tuple[RecordingKey, Seconds, Seconds, str | None]
"""Recording, offset, duration and language."""

RowKey = tuple[str, str, Seconds, Seconds, int | None, str | None, str | None]
"""Id, path, offset, duration, channel, language and task."""


class Located(Protocol):
    """What utterances and predictions say about their audio."""

    @property
    def id(self) -> str:
        """Id of the utterance."""

    @property
    def audio_filepath(self) -> str:
        """Path of the audio file."""

    @property
    def offset(self) -> Seconds:
        """Start in the file, in seconds."""

    @property
    def duration(self) -> Seconds:
        """Length in seconds."""

    @property
    def channel(self) -> int | None:
        """Index of the channel, from 0, or None."""

    @property
    def lang(self) -> str | None:
        """Language code, or None."""

    @property
    def task(self) -> str | None:
        """``transcribe``, ``translate`` or None."""


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def file_key(path: str) -> str:
    """The path with its folder resolved. Two paths of one file have the same key, and the file need not exist."""
    location = Location.of(path)
    if not location.is_file:
        base = location.container if is_remote(location.container) else file_key(location.container)
        return str(replace(location, container=base))
    folder, name = os.path.split(path)
    return f"{_real_folder(str(Path.cwd() / folder))}{os.sep}{name}"


def recording_key(one: Located) -> RecordingKey:
    """The recording of a row: its file, channel and task."""
    return file_key(one.audio_filepath), one.channel, one.task


def identity(one: Located) -> Identity:
    """The identity of a row. Rows with the same identity have the same transcript."""
    return recording_key(one), one.offset, one.duration, one.lang


def row_key(one: Located) -> RowKey:
    """A key that tells the rows of a manifest apart, with ids and paths as they are written."""
    return one.id, one.audio_filepath, one.offset, one.duration, one.channel, one.lang, one.task


def content_digest(path: str | Path) -> str | None:
    """Digest of the content of a file or a member of a tar. None if there is no such file. Equal for equal bytes.

    It tells other audio under the same name apart, wherever the file lies. Of files beyond 4 MiB, only the first,
    middle and last 64 KiB and the size count, so that an edit between these parts is not noticed.
    """
    try:
        return _content_digest(FileKey.of(_absolute(str(path))))
    except MediaError as error:
        # Files that are empty have a digest, too.
        return hashlib.blake2b(b"0", digest_size=16).hexdigest() if error.reason == "empty_file" else None
    except OSError:
        return None


def _absolute(path: str) -> str:
    """The path, valid in any working directory, for the cache."""
    container = Location.of(path).container
    return path if is_remote(container) else os.path.join(Path.cwd(), path)  # noqa: PTH118  # keeps names of members


# Cached, because a long recording may have many utterances. The key changes with the file.
@lru_cache(maxsize=4096)
def _content_digest(key: FileKey) -> str:
    size, digest = key.size, hashlib.blake2b(f"{key.size}".encode(), digest_size=16)
    with opened(key.path) as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for start in (0, (size - _PART_BYTES) // 2, size - _PART_BYTES):
                file.seek(start)
                digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()
