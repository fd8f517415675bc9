"""Read audio by PyAV, whose wheel carries FFmpeg: compressed audio, and the sound of video.

The first audio stream of a file is read. Positions are counted in decoded samples from the first one on:

    packets       |p0|p1|p2|…       |p500|p501|…
    samples       0  ^              ^ checkpoint: samples that decoding gives before p500
    a late part                 |----|==========|
                                ^ seek: decode from 1 s before the checkpoint, and discard that second

A part therefore has the same position as in a decode of the whole file, whatever the timestamps of the file say. The
checkpoints are found by one pass over the file, when the first late part is read.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.files import FileKey, Location, name_of, opened
from ssl_asr.data.remote import MediaError
from ssl_asr.types import Hertz, Samples, Seconds

# Demuxers of files that people keep speech in. Playlists, which open other files, are not among them.
_FORMATS = (
    "aac,ac3,eac3,dts,dtshd,aiff,amr,amrnb,amrwb,ape,asf,asf_o,au,avi,caf,dsf,flac,flv,live_flv,loas,matroska,webm,"
    "mov,mp4,m4a,3gp,3g2,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,rm,rso,shn,sox,tak,tta,voc,w64,wav,wtv,wv,"
    "xwma,qcp,ircam,iff,gsm,dss,qoa,truehd,mlp,lrc3,smjpeg,g722,g726,g729,ilbc"
)
# Packets that cannot be decoded are left out. A file with a larger share of them is damaged.
_MAX_LOST = 0.1
# Decoders need a run-up after a seek: MP3 the bits of earlier frames, Opus and speech codecs their filters.
_RUN_UP_S: Seconds = 1.0
_CHECKPOINT_S: Seconds = 1.0
# Parts that start less than this after the last one are reached by decoding on.
_FORWARD_S: Seconds = 60.0
# Decoded audio that is kept, because windows overlap.
_KEPT_S: Seconds = 60.0

if TYPE_CHECKING:
    Packet = av.Packet[Any]

_Key = tuple[int | None, int | None, int]


def damaged(error: object) -> MediaError:
    """The error of a file that cannot be decoded."""
    return MediaError(f"cannot be decoded: {error}", "the file is damaged, get it again", "decode_error")


def _reason(error: Exception) -> str:
    """FFmpeg's words, without the path that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


# PyAV reads past the end of a list of this many planes or more, which crashes: the list has no null pointer at its end.
_PLANES = 8
# What PyAV raises for damaged files: FFmpeg's errors, and Python's for values of a header that are out of range.
_ERRORS = (av.FFmpegError, ValueError, OverflowError, MemoryError, RuntimeError, LookupError, TypeError, AttributeError)


class _Stream:
    """The first audio stream of a file, decoded packet by packet.

    Attributes:
        rate: Sample rate of the first decoded frame. Frames with another rate are resampled to it.
        channels: Number of channels of the first decoded frame.
        floats: Whether the file stores floating-point samples.
        lost: Number of packets that could not be decoded.
    """

    def __init__(self, key: FileKey) -> None:
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        try:
            # Without the protocol, FFmpeg takes a name such as "a:b.wav" for one.
            # PyAV keeps a file that it is given, and closes one that it opens.
            source = f"file:{key.path}" if Location.of(key.path).is_file else opened(key.path)
            self.container = av.open(source, "r", options=options, metadata_errors="ignore")
        except _ERRORS as error:
            what = f"not an audio file: {_reason(error)}"
            raise MediaError(what, "convert it to WAV or FLAC, or get it again", "not_audio") from None
        streams = self.container.streams.audio
        if not streams:
            kinds = sorted({stream.type for stream in self.container.streams})
            self.container.close()
            found = f" (it has {' and '.join(kinds)})" if kinds else ""
            raise MediaError(f"not an audio file: it has no audio stream{found}", "remove it", "not_audio")
        self.stream = streams[0]
        codec: Any = self.stream.codec_context
        if codec is None:
            self.container.close()
            what = "its audio is encrypted, or of a codec that FFmpeg cannot decode"
            raise MediaError(what, "convert it to WAV or FLAC with the program that made it", "no_decoder")
        codec.thread_count = 1
        self.floats: bool = codec.name.startswith("pcm_f")
        self.lost, self.packets = 0, 0
        self._first: av.AudioFrame | None = None
        self._converter: tuple[tuple[Any, ...], av.AudioResampler] | None = None

    @property
    def rate(self) -> Hertz:
        """Sample rate of the first frame; 0 before it."""
        return 0 if self._first is None else self._first.sample_rate

    @property
    def channels(self) -> int:
        """Channels of the first frame; 0 before it."""
        return 0 if self._first is None else self._first.layout.nb_channels

    def packets_of(self) -> Iterator["Packet"]:
        """The packets from the current position on. The last one is empty and ends the stream."""
        try:
            yield from self.container.demux(self.stream)
        except _ERRORS:
            # The rest of the file cannot be read, as in a file that was cut. What was read is decoded.
            self.lost += 1

    def decoded(self, packet: "Packet") -> list[NDArray[np.float32]]:
        """Samples of a packet, each of shape (T, channels)."""
        self.packets += 1
        try:
            return [block for frame in packet.decode() for block in self._blocks(frame)]  # type: ignore[arg-type]
        except av.EOFError:
            return []
        except _ERRORS:
            self.lost += 1
            return []

    def _blocks(self, frame: av.AudioFrame) -> Iterator[NDArray[np.float32]]:
        """The samples of a frame in the format of the first frame."""
        if frame.samples == 0:
            return
        if self._first is None:
            self._first = frame
        first = self._first
        own = (frame.sample_rate, frame.layout.name, frame.format.name)
        is_readable = not frame.format.is_planar or frame.layout.nb_channels < _PLANES
        if own[:2] == (first.sample_rate, first.layout.name) and is_readable:
            yield _floats(frame)
            return
        if self._converter is None or self._converter[0] != own:
            self._converter = (own, av.AudioResampler(format="flt", layout=first.layout, rate=first.sample_rate))
        frame.pts = None
        for converted in self._converter[1].resample(frame):
            yield _floats(converted)

    def check(self) -> None:
        """Raise MediaError if too many packets were lost."""
        if self.lost > max(1.0, _MAX_LOST * self.packets):
            raise damaged(f"{self.lost:,} of {self.packets:,} packets are damaged")

    def close(self) -> None:
        """Close the file."""
        self.container.close()


_FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


def _floats(frame: av.AudioFrame) -> NDArray[np.float32]:
    """float32 samples of shape (T, channels), integers scaled to [-1, 1)."""
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    kind = array.dtype.str[1:]
    if kind == "u1":
        array = array.astype(np.float32) - np.float32(128)
    scale = _FULL_SCALE.get(kind)
    # Numbers beyond float32 become infinite. They are an error later.
    with np.errstate(over="ignore", invalid="ignore"):
        floats = array.astype(np.float32)
    return floats if scale is None else floats / np.float32(scale)


@dataclass(slots=True)
class _Index:
    """Length of a file, and the packets that late parts can be reached from.

    Attributes:
        frames: Samples of the whole file.
        lost: Packets that could not be decoded.
        keys: Identity of a packet.
        times: Its timestamp.
        samples: Number of samples that decoding gives before it.
    """

    frames: Samples = 0
    lost: int = 0
    keys: list[_Key] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)


def _key_of(packet: "Packet") -> _Key:
    return packet.pts, packet.pos, packet.size


@lru_cache(maxsize=4096)
def _index(key: FileKey) -> _Index:
    """Decode the file once."""
    stream, index = _Stream(key), _Index()
    try:
        for packet in stream.packets_of():
            due = not index.samples or index.frames - index.samples[-1] >= _CHECKPOINT_S * stream.rate
            rising = packet.pts is not None and (not index.times or packet.pts > index.times[-1])
            if due and rising and packet.size and packet.pts is not None:
                index.keys.append(_key_of(packet))
                index.times.append(packet.pts)
                index.samples.append(index.frames)
            index.frames += sum(map(len, stream.decoded(packet)))
        stream.check()
        index.lost = stream.lost
    finally:
        stream.close()
    return index


@lru_cache(maxsize=4096)
def listed_s(key: FileKey) -> Seconds:
    """Duration of a file's packets in seconds, by their timestamps, without decoding.

    Where packets have no duration, the file is decoded.
    """
    stream = _Stream(key)
    try:
        base = stream.stream.time_base or Fraction(0)
        end = _end_of_table(stream)
        if end is not None:
            return float(end * base)
        total, first, last = 0, math.inf, -math.inf
        for packet in stream.packets_of():
            if packet.size and not packet.duration:
                source = DecodedSource(key)
                source.close()
                return source.frames / source.rate
            total += packet.duration or 0
            if packet.size and packet.pts is not None:
                first, last = min(first, packet.pts), max(last, packet.pts + (packet.duration or 0))
        # Timestamps in milliseconds round each duration. Joined files start their timestamps again.
        return float(max(total, last - first) * base)
    finally:
        stream.close()


def _end_of_table(stream: _Stream) -> int | None:
    """Duration of an MP4 file by its sample table, in units of its time base, if its last packet is there."""
    start, duration = stream.stream.start_time or 0, stream.stream.duration
    if "mp4" not in stream.container.format.name or not duration:
        return None
    base = stream.stream.time_base or Fraction(1)
    try:
        stream.container.seek(start + max(0, duration - int(1 / base)), stream=stream.stream)
        ends = [(packet.pts or 0) + (packet.duration or 0) for packet in stream.packets_of() if packet.size]
        if ends and abs(max(ends) - start - duration) * base < _MAX_LOST:
            return duration
        stream.container.seek(start, stream=stream.stream)
    except _ERRORS:
        pass
    return None


def _first_bytes(key: FileKey) -> bytes:
    with opened(key.path) as file:
        return file.read(4096)


class DecodedSource:
    """A file that PyAV reads. See `ssl_asr.data.media.Source`.

    Parts are read in any order. A part after the last one is reached by decoding on. The last minute is kept, so that
    overlapping windows are decoded once.
    """

    def __init__(self, key: FileKey) -> None:
        self._key = key
        self._blocks: deque[NDArray[np.float32]] = deque()
        self._restart()
        while self._stream.rate == 0 and self._decode_more():
            pass
        self.rate, self.channels, self.floats = self._stream.rate, self._stream.channels, self._stream.floats
        if self.rate == 0:
            lost = self._stream.lost
            self.close()
            if lost:
                raise damaged("no packet of its audio could be decoded")
            if name_of(key.path).suffix.lower() == ".flac" and b"fLaC" not in _first_bytes(key):
                # FFmpeg takes anything for FLAC by the suffix.
                raise MediaError("not an audio file: it has no FLAC header", "get it again", "not_audio")
            raise MediaError("no samples", "get the file again, or leave it out", "no_samples")

    @property
    def lost(self) -> int:
        """Number of packets that could not be decoded."""
        return self._stream.lost

    @property
    def frames(self) -> Samples:
        """Number of samples of each channel that decoding gives."""
        return _index(self._key).frames

    def length_s(self) -> Seconds:
        """Duration in seconds, to 0.1 s."""
        return listed_s(self._key)

    @property
    def stays_open(self) -> bool:
        """A file that is not read to its end stays open."""
        return not self._ended

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._blocks.clear()

    def read(self, start: Samples, count: Samples) -> NDArray[np.float32]:
        """Samples ``[start, start + count)`` of shape (T, channels), fewer at the end of the file.

        Raises:
            MediaError: Too many packets cannot be decoded.
        """
        if start < self._begin or start - self._end > _FORWARD_S * self.rate:
            self._move(start)
        while self._end < start + count:
            self._forget(start)
            if not self._decode_more():
                break
        self._stream.check()
        parts, at = [], self._begin
        for block in self._blocks:
            part = block[max(0, start - at) : max(0, start + count - at)]
            if len(part):
                parts.append(part)
            at += len(block)
        self._forget(self._end)
        return np.concatenate(parts) if parts else np.zeros((0, self.channels), dtype=np.float32)

    def _restart(self) -> None:
        """Go to the first sample."""
        self._blocks.clear()
        self._stream = _Stream(self._key)
        self._packets = self._stream.packets_of()
        self._begin = self._end = 0
        self._ended = False

    def _decode_more(self) -> bool:
        """Decode one packet. Returns False at the end of the file."""
        packet = next(self._packets, None)
        if packet is None:
            self._ended = True
            return False
        for block in self._stream.decoded(packet):
            self._blocks.append(block)
            self._end += len(block)
        return True

    def _forget(self, start: Samples) -> None:
        """Release blocks that end more than a minute before the last sample, and before ``start``."""
        limit = min(start, self._end - math.ceil(_KEPT_S * self.rate))
        while self._blocks and self._begin + len(self._blocks[0]) <= limit:
            self._begin += len(self._blocks.popleft())

    def _move(self, start: Samples) -> None:
        """Go to a checkpoint before ``start``, or to the first sample if none can be reached."""
        index = _index(self._key) if start > _FORWARD_S * self.rate else _Index()
        goal = bisect_right(index.samples, start) - 1
        run_up = math.ceil(_RUN_UP_S * self.rate)
        origin = bisect_right(index.samples, index.samples[goal] - run_up) - 1 if goal > 0 else -1
        if origin > 0 and self._seek(index, origin, goal):
            self._begin = self._end = index.samples[goal]
            self._ended = False
            return
        self._stream.close()
        self._restart()

    def _seek(self, index: _Index, origin: int, goal: int) -> bool:
        """Seek to one checkpoint and decode up to another. Returns whether it was reached."""
        stream = self._stream
        self._blocks.clear()
        try:
            stream.container.seek(index.times[origin], stream=stream.stream)
        except _ERRORS:
            return False
        self._packets = stream.packets_of()
        for fed, packet in enumerate(self._packets):
            if packet.size and _key_of(packet) == index.keys[goal]:
                # The packet is decoded by the next call of `_decode_more`.
                self._packets = _chained(packet, self._packets)
                return fed > 0
            if packet.pts is not None and packet.pts > index.times[goal]:
                return False
            stream.decoded(packet)
        return False


def _chained(packet: "Packet", rest: Iterator["Packet"]) -> Iterator["Packet"]:
    yield packet
    yield from rest
