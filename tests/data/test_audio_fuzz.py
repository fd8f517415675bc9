"""Damaged audio files: an error that names the file, or finite samples of the length that was promised.

`tests.fuzzing` says how to try more.
"""

import math
import random

import pytest
import soundfile
import torch

from ssl_asr.data.audio import audio_duration_s, check_header, read_waveform
from ssl_asr.data.media import MIN_RATE
from ssl_asr.data.signal import Signal
from ssl_asr.types import SAMPLE_RATE, Utterance
from tests.audio_files import FORMATS, encode, speech_like, with_checksums
from tests.fuzzing import fuzz, result_of

# Files that FFmpeg writes, of `tests.audio_files.FORMATS`, and files that libsndfile writes.
FAMILIES = {
    "wav": ["a.wav", "a.w64", "a.aiff", "a.au", "a.caf", "WAV DOUBLE", "WAVEX PCM_24", "WAV IMA_ADPCM", "AIFF FLOAT"],
    "flac": ["a.flac", "FLAC PCM_24"],
    "ogg": ["opus.opus", "OGG VORBIS", "OGG OPUS"],
    "mp3": ["a.mp3", "a.mp2", "MP3 MPEG_LAYER_III"],
    "mp4": ["aac.m4a", "aac.mov", "alac.m4a", "amr.3gp"],
    "matroska": ["opus.webm", "aac.mkv"],
    "others": ["raw.aac", "voice.amr", "a.wma", "a.avi", "a.flv", "a.ts", "a.ac3", "a.wv", "a.tta"],
}
_LENGTH_S = 0.3
_TOLERANCE_S = 0.11
_EXTREMES = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff" * 8]
_TAGS = [b"ID3\4\0\0\0\0\1\0", b"ID3\4\0\x10\x7f\x7f\x7f\x7f", b"TAG" + bytes(125), b"OggS", b"RIFF", b"fLaC"]


def contents_in(folder):
    """Name and bytes of the short files of each family."""
    encoded = {name: (kind, codec, rate, options) for name, kind, codec, rate, options in FORMATS}
    found = {}
    for family, names in FAMILIES.items():
        found[family] = []
        for name in names:
            path = folder / name
            if name in encoded:
                kind, codec, rate, options = encoded[name]
                encode(path, speech_like(_LENGTH_S, rate), rate, kind=kind, codec=codec, **options)
            else:
                kind, subtype = name.split()
                path = folder / f"{subtype}.{kind.lower()}"
                soundfile.write(path, speech_like(_LENGTH_S, 16000), 16000, format=kind, subtype=subtype)
            found[family].append((path.name, path.read_bytes()))
            path.unlink()
    return found


@pytest.fixture(scope="module")
def contents(memory_folder):
    return contents_in(memory_folder)


def _damaged(draw, content):
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 3, 8])):
        at = draw.choice([draw.randrange(64), draw.randrange(512), draw.randrange(len(content))]) % max(1, len(data))
        new = draw.choice([draw.randbytes(draw.randint(1, 4)), draw.choice(_EXTREMES), draw.choice(_TAGS)])
        kind = draw.choice(["replace", "replace", "replace", "flip", "insert", "delete", "copy", "cut", "front"])
        if kind == "replace":
            data[at : at + len(new)] = new
        elif kind == "flip" and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "insert":
            data[at:at] = new
        elif kind == "delete":
            del data[at : at + draw.choice([1, len(new), 100])]
        elif kind == "copy":
            data[at:at] = data[at : at + draw.randint(1, 2000)]
        elif kind == "front":
            data[:0] = new
        elif draw.random() < 0.3:
            del data[at:]
    return with_checksums(data) if data[:4] == b"OggS" and draw.random() < 0.7 else bytes(data)


def _check(utterance, longest_s, shortest_s=0.0):
    """Read an utterance of a damaged file."""
    signals: list[Signal] = []
    waveform_T = result_of(lambda: read_waveform(utterance, signals=signals), utterance.audio_filepath)
    if waveform_T is None:
        return
    assert waveform_T.dtype == torch.float32
    assert waveform_T.ndim == 1
    assert torch.isfinite(waveform_T).all()
    assert len(signals) == 1
    assert isinstance(signals[0], Signal)
    # Lengths are rounded to samples of the file.
    longest_s = min(longest_s, 1e6) + 1 / MIN_RATE
    assert max(1, shortest_s * SAMPLE_RATE) <= len(waveform_T) <= math.ceil(longest_s * SAMPLE_RATE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
@fuzz(parts=len(FAMILIES))
def test_damaged_files_are_refused_or_read(contents, memory_folder, family, seed):
    draw = random.Random(seed)
    name, content = draw.choice(contents[family])
    # Each file has a name of its own: readers know a file that has changed by its time, which is not exact.
    path = memory_folder / f"{seed} {name if draw.random() < 0.9 else 'a'}"
    path.write_bytes(_damaged(draw, content))
    where = str(path)
    duration = result_of(lambda: audio_duration_s(path), where)
    part = Utterance(path.name, str(path), 0.1, offset=0.1)
    result_of(lambda: check_header(part), where)
    _check(part, 0.1)
    if duration is None:
        _check(Utterance(path.name, str(path), 0.0), math.inf)
    else:
        _check(Utterance(path.name, str(path), duration), duration, duration - _TOLERANCE_S)
    path.unlink()
