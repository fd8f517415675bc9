"""Open audio files of any format and read their samples by position.

    content                             library      length
    WAV, FLAC, AIFF, AU, CAF, W64, …    soundfile    the header, which is exact
    OGG with one stream of Vorbis       soundfile    its last page, which is exact
    Opus, one stream, up to 2 minutes   soundfile    its last page, which is exact
    MP3 with a valid Xing/Info frame,   soundfile    that frame, which is exact
    up to 2 minutes
    all other formats, and video        PyAV         decoding, see `ssl_asr.data.ffmpeg`

The content of a file decides, not the suffix of its name. A file that soundfile cannot open, and a file whose header
gives no length, is read by PyAV.
"""

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from ssl_asr.data.ffmpeg import DecodedSource, damaged
from ssl_asr.data.files import FileKey, Location, opened, unopened
from ssl_asr.data.remote import MediaError
from ssl_asr.types import Hertz, Samples, Seconds

AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".spx", ".mp3", ".mp2", ".mpga"),
    *(".m4a", ".m4b", ".m4r", ".mp4", ".m4v", ".mov", ".aac", ".adts", ".3gp", ".3gpp", ".3g2", ".amr", ".awb"),
    *(".webm", ".weba", ".mkv", ".mka", ".wma", ".wmv", ".asf", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
    *(".ac3", ".eac3", ".dts", ".ape", ".wv", ".tta", ".tak", ".mpc", ".dsf", ".voc", ".sph", ".nist", ".ra", ".rm"),
    *(".avi", ".flv", ".f4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".ogv", ".mxf", ".wtv"),
)
"""Suffixes of files with audio that can be read. Folders are searched for them."""

# A reader of a long recording stays open for the next part.
_LONG_S: Seconds = 60.0
# Longest file without seeks that soundfile reads.
_FORWARD_S: Seconds = 120.0
# A length that is no length: FLAC has 36 bits for it.
_UNKNOWN: Samples = 1 << 36
# Sizes from here on in headers of WAV and AIFF are those of streams, which do not know their size.
_NO_SIZE = 0x7FFF0000
# Samples of one call to libsndfile. The length in a damaged header can exceed the memory.
_BLOCK: Samples = 1 << 20
# Sample rates outside this range are those of damaged headers.
MIN_RATE: Hertz = 1_000
MAX_RATE: Hertz = 1_000_000
# soundfile reads samples that are floating-point numbers in the file without a limit to [-1, 1].
_FLOATS = ("FLOAT", "DOUBLE")


class Source(Protocol):
    """Samples of an open file."""

    @property
    def rate(self) -> Hertz:
        """Sample rate."""

    @property
    def channels(self) -> int:
        """Number of channels."""

    @property
    def floats(self) -> bool:
        """Whether the file stores floating-point samples, which can be outside [-1, 1]."""

    @property
    def lost(self) -> int:
        """Number of packets that could not be decoded so far."""

    @property
    def frames(self) -> Samples:
        """Number of samples of each channel that decoding gives."""

    def length_s(self) -> Seconds:
        """Duration in seconds, from the file's index where decoding is not needed to know it to 0.1 s."""

    def read(self, start: Samples, count: Samples) -> NDArray[np.float32]:
        """Samples ``[start, start + count)`` of shape (T, channels), fewer at the end of the file.

        Raises:
            MediaError: The file cannot be decoded.
        """

    @property
    def stays_open(self) -> bool:
        """Whether the next part is read faster if the file stays open."""

    def close(self) -> None:
        """Close the file."""


def _is_read_forward(file: soundfile.SoundFile) -> bool:
    """Whether parts are reached from the start: libsndfile has no seek, as in GSM, or gives other samples after it."""
    return bool(file.format == "MP3" or file.subtype == "OPUS" or not file.seekable())


class SoundfileSource:
    """A file that soundfile reads. See `Source`."""

    def __init__(self, file: soundfile.SoundFile, path: str) -> None:
        self._file, self._path = file, path
        self._position: Samples = 0
        self.rate: Hertz = file.samplerate
        self.channels: int = file.channels
        self.floats = file.subtype in _FLOATS
        self.lost = 0

    @property
    def frames(self) -> Samples:
        """See `Source.frames`."""
        frames: Samples = self._file.frames
        return frames

    def length_s(self) -> Seconds:
        """See `Source.length_s`."""
        return self.frames / self.rate

    def read(self, start: Samples, count: Samples) -> NDArray[np.float32]:
        """See `Source.read`."""
        if start >= self.frames:
            return np.zeros((0, self.channels), dtype=np.float32)
        try:
            self._go_to(start)
            blocks = [self._next(count)]
            left = count - len(blocks[0])
            while left > 0 and len(blocks[-1]) == _BLOCK:
                blocks.append(self._next(left))
                left -= len(blocks[-1])
        except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as error:
            raise damaged(error) from None
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _next(self, count: Samples) -> NDArray[np.float32]:
        """The next samples, at most a block."""
        samples: NDArray[np.float32] = self._file.read(min(count, _BLOCK), dtype="float32", always_2d=True)
        self._position += len(samples)
        return samples

    def _go_to(self, start: Samples) -> None:
        """Go to a sample."""
        if self._position == start:
            return
        if not _is_read_forward(self._file):
            # libsndfile crashes on a seek in Vorbis without a decoder, as after a damaged header. It reads no sample.
            if self._position == 0 and self._file.subtype == "VORBIS" and not len(self._file.read(1)):
                raise RuntimeError("no first sample")
            self._position = self._file.seek(start)
        elif start < self._position:
            self._file.close()
            self._file = _soundfile(self._path)
            self._position = 0
        while self._position < start:
            if not len(self._next(start - self._position)):
                raise RuntimeError(f"no sample {start:,}")

    @property
    def stays_open(self) -> bool:
        """A file without seeks is read on from the last part."""
        return _is_read_forward(self._file) and self.length_s() > _LONG_S

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# Which library reads a file --------------------------------------------------------------------------------------


def _head(path: str) -> tuple[bytes, int]:
    """The first bytes after ID3v2 tags, and their position."""
    with opened(path) as file:
        at = 0
        head = file.read(10)
        while head[:3] == b"ID3" and len(head) == 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            at += 10 + size + (10 if head[5] & 0x10 else 0)
            file.seek(at)
            head = file.read(10)
        return head + file.read(4096), at


def _is_mpeg(head: bytes) -> bool:
    """Whether a header of an MPEG-1, 2 or 2.5 audio frame comes first. AAC has the same first bits, and no layer."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


class _InfoFrame(NamedTuple):
    """What a Xing/Info frame says. Bits 0 and 1 of ``flags``: it has the number of frames, the size in bytes."""

    flags: int
    frames: int
    size: int


def _info_frame(head: bytes) -> _InfoFrame | None:
    """The Xing/Info frame of an MP3 file, if it comes first."""
    mono, version_1 = head[3] >> 6 == 3, head[1] & 0x18 == 0x18
    at = 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))
    if head[at : at + 4] not in (b"Xing", b"Info") or len(head) < at + 16:
        return None
    return _InfoFrame(*struct.unpack(">III", head[at + 4 : at + 16]))


def _has_exact_frame(head: bytes, audio_bytes: int) -> bool:
    """Whether the first MP3 frame is a Xing/Info frame with the number of frames and the size of this very file.

    A file that was cut, joined from others or streamed has another size, or no such frame.
    """
    frame = _info_frame(head)
    # An ID3v1 tag of 128 bytes may follow the audio.
    return frame is not None and frame.flags & 3 == 3 and frame.size in (audio_bytes, audio_bytes - 128)


def _has_one_ogg_stream(path: str, size: int) -> bool:
    """Whether an OGG file has one stream, of Vorbis or Opus. libsndfile reads the first one of several streams."""
    with opened(path) as file:
        position, streams = 0, 0
        while position + 27 <= size:
            file.seek(position)
            page = file.read(27 + 255)
            if page[:4] != b"OggS" or len(page) < 27 + page[26]:
                return False
            body = 27 + page[26]
            if page[5] & 2:
                streams += 1
                file.seek(position + body)
                if streams > 1 or not file.read(8).startswith((b"\x01vorbis", b"OpusHead")):
                    return False
            position += body + sum(page[27:body])
    return streams == 1


def ends_early(path: str | Path) -> bool:
    """Whether a file is shorter than its header says. Such a file was not copied, recorded or downloaded to its end.

    WAV and AIFF have their size in the first bytes, OGG marks its last page, and the first frame of most MP3 files has
    the number of bytes. Other formats have no such header, or are not read without their end.

    Raises:
        MediaError: The file does not exist or is empty.
    """
    return _ends_early(FileKey.of(path))


# Every epoch reads a file again, and every part of a long recording.
@lru_cache(maxsize=65536)
def _ends_early(key: FileKey) -> bool:
    head, at = _head(key.path)
    if head[:4] in (b"RIFF", b"FORM") and at == 0:
        size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        # A file that was streamed has no size, or the largest one. The last odd byte may lack its partner.
        return 0 < size < _NO_SIZE and size + 8 > key.size + 1
    if head[:4] == b"OggS" and at == 0:
        return not _has_last_ogg_page(key)
    frame = _info_frame(head) if _is_mpeg(head) else None
    return frame is not None and bool(frame.flags & 2) and frame.size > key.size - at


def _has_last_ogg_page(key: FileKey) -> bool:
    """Whether the last page of an OGG file is whole, and is marked as the end of its stream."""
    with opened(key.path) as file:
        # A page has at most 65,307 bytes.
        file.seek(max(0, key.size - 65_307))
        end = file.read()
    page = end[end.rfind(b"OggS") :]
    is_whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return is_whole and bool(page[5] & 4)


def _soundfile_is_exact(key: FileKey) -> bool:
    """Whether soundfile reads the file whole, by its first bytes."""
    head, at = _head(key.path)
    if head[:4] == b"OggS":
        return at == 0 and _has_one_ogg_stream(key.path, key.size)
    if _is_mpeg(head):
        return _has_exact_frame(head, key.size - at)
    return at == 0 or head[:4] in (b"fLaC", b"RIFF", b"FORM")


def _soundfile(path: str) -> soundfile.SoundFile:
    return soundfile.SoundFile(path if Location.of(path).is_file else opened(path))


def _open_soundfile(key: FileKey) -> SoundfileSource | None:
    """The file opened by soundfile, or None if PyAV reads it."""
    if not _soundfile_is_exact(key):
        return None
    try:
        file = _soundfile(key.path)
    except (soundfile.LibsndfileError, RuntimeError):
        return None
    # A header without a length: the samples were streamed. MPEG audio in WAV has an estimate.
    has_no_length = not 0 < file.frames < _UNKNOWN or (file.subtype.startswith("MPEG") and file.format != "MP3")
    if has_no_length or (_is_read_forward(file) and file.frames > _FORWARD_S * file.samplerate):
        file.close()
        return None
    return SoundfileSource(file, key.path)


def open_source(path: str | Path) -> Source:
    """Open a file.

    Raises:
        MediaError: It does not exist, is empty, has no audio, or cannot be decoded.
    """
    key = FileKey.of(path)
    try:
        source = _open_soundfile(key) or DecodedSource(key)
    except OSError as error:
        raise unopened(error) from None
    if not MIN_RATE <= source.rate <= MAX_RATE:
        source.close()
        what = f"has a sample rate of {source.rate:,} Hz, expected {MIN_RATE:,} to {MAX_RATE:,} Hz"
        raise MediaError(what, "get the file again", "bad_sample_rate")
    return source


# The reader that stays open ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    process: int
    key: FileKey
    source: Source


class _Slot(threading.local):
    """The reader that was used last in this thread. A recording is usually read part after part."""

    kept: _Kept | None = None


_slot = _Slot()


@contextmanager
def source_of(path: str | Path) -> Iterator[Source]:
    """The open file, for the next part of a recording the same reader. See `open_source` for errors."""
    key, kept = FileKey.of(path), _slot.kept
    _slot.kept = None
    # A reader is not shared with a forked process, which would move its position.
    if kept is not None and kept.key == key and kept.process == os.getpid():
        source = kept.source
    else:
        source = open_source(path)
        if kept is not None and kept.process == os.getpid():
            kept.source.close()
    try:
        yield source
    except BaseException:
        source.close()
        raise
    if source.stays_open:
        _slot.kept = _Kept(os.getpid(), key, source)
    else:
        source.close()


class Header(NamedTuple):
    """What opening a file says. The length is to 0.1 s, from the file's index where there is one."""

    length_s: Seconds
    rate: Hertz
    channels: int


def header_of(path: str | Path) -> Header:
    """Length, sample rate and channels of a file. Faster than decoding. See `open_source` for errors."""
    source = open_source(path)
    try:
        return Header(source.length_s(), source.rate, source.channels)
    finally:
        source.close()
