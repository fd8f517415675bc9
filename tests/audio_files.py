"""Audio files of many formats, encoded by FFmpeg."""

from fractions import Fraction

import av
import numpy as np

# Name of the file, format (None: by the name), encoder, sample rate, options of the encoder's stream.
FORMATS = [
    ("aac.m4a", None, "aac", 44100, {}),
    ("aac.mp4", None, "aac", 48000, {}),
    ("aac.mov", None, "aac", 48000, {}),
    ("raw.aac", "adts", "aac", 44100, {}),
    ("alac.m4a", "ipod", "alac", 44100, {}),
    ("amr.3gp", None, "libopencore_amrnb", 8000, {"bit_rate": 12200}),
    ("voice.amr", None, "libopencore_amrnb", 8000, {"bit_rate": 12200}),
    ("opus.webm", None, "libopus", 48000, {}),
    ("opus.opus", "ogg", "libopus", 48000, {}),
    ("aac.mkv", None, "aac", 44100, {}),
    ("a.wma", "asf", "wmav2", 44100, {"bit_rate": 128_000}),
    ("a.mp3", None, "libmp3lame", 44100, {}),
    ("a.mp2", None, "mp2", 44100, {}),
    ("a.avi", None, "libmp3lame", 44100, {}),
    ("a.flv", None, "aac", 44100, {}),
    ("a.ts", "mpegts", "aac", 44100, {}),
    ("a.ac3", None, "ac3", 44100, {}),
    ("a.wv", None, "wavpack", 16000, {}),
    ("a.tta", None, "tta", 16000, {}),
    ("a.flac", None, "flac", 16000, {}),
    ("a.wav", None, "pcm_s16le", 16000, {}),
    ("a.w64", None, "pcm_s16le", 16000, {}),
    ("a.aiff", None, "pcm_s16be", 16000, {}),
    ("a.au", None, "pcm_s16be", 16000, {}),
    ("a.caf", None, "pcm_s16le", 16000, {}),
]


def encode(path, samples, rate, *, codec, kind=None, layout="mono", bit_rate=None, muxer=None, encoder=None):
    """Write float32 samples of shape (T,) or (channels, T) as the only stream of a file."""
    with av.open(str(path), "w", format=kind, options=muxer or {}) as container:
        stream = new_stream(container, rate, codec=codec, layout=layout, bit_rate=bit_rate, encoder=encoder)
        write_stream(container, stream, samples)
    return path


def new_stream(container, rate, *, codec, layout="mono", bit_rate=None, encoder=None):
    """Add an audio stream. All streams are added before the first one is written."""
    stream = container.add_stream(codec, rate=rate, options=encoder or {})
    stream.layout = layout
    if bit_rate:
        stream.bit_rate = bit_rate
    return stream


def write_stream(container, stream, samples):
    """Encode and write one audio stream."""
    rate, layout = stream.rate, stream.layout.name
    packed = np.atleast_2d(samples).astype(np.float32).T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    for part in (*converter.resample(frame), *converter.resample(None)):
        for packet in stream.encode(part):
            container.mux(packet)
    for packet in stream.encode(None):
        container.mux(packet)


def speech_like(seconds, rate, seed=0):
    """Float32 samples with a pitch, syllables and noise."""
    times = np.arange(round(seconds * rate)) / rate
    pitch = np.sin(2 * np.pi * (180 * times + 3 * np.sin(5 * times))) + 0.5 * np.sin(2 * np.pi * 700 * times)
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * times)
    noise = np.random.default_rng(seed).standard_normal(len(times))
    return (0.2 * pitch * syllables + 0.003 * noise).astype(np.float32)


def _checksums():
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
        table.append(value)
    return table


_CHECKSUMS = _checksums()


def with_checksums(data):
    """Pages of OGG with the right checksum, because libraries pass over others."""
    data, at = bytearray(data), 0
    while data[at : at + 4] == b"OggS" and at + 27 + (data[at + 26 : at + 27] or b"\0")[0] <= len(data):
        body = at + 27 + data[at + 26]
        end = body + sum(data[at + 27 : body])
        data[at + 22 : at + 26] = bytes(4)
        value = 0
        for byte in data[at:end]:
            value = ((value << 8) & 0xFFFFFFFF) ^ _CHECKSUMS[(value >> 24) ^ byte]
        data[at + 22 : at + 26] = value.to_bytes(4, "little")
        at = end
    return bytes(data)
