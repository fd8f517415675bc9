"""Damaged audio files give an AudioError, never another exception, and never take long.

SSL_ASR_FUZZ=100000 python -m pytest tests/data/test_audio_fuzz.py
"""

import contextlib
import os
import signal

import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_asr.data.audio import audio_duration_s, check_header, read_waveform
from ssl_asr.errors import AudioError
from ssl_asr.types import Utterance
from tests.audio_files import FORMATS, encode, speech_like

# A damaged file is read in milliseconds. The limit leaves room for a busy machine.
_LIMIT_S = 30
_SUBTYPES = [("WAV", "PCM_16"), ("WAV", "DOUBLE"), ("WAVEX", "PCM_24"), ("WAV", "IMA_ADPCM"), ("OGG", "VORBIS")]


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Short files of many formats."""
    folder = tmp_path_factory.mktemp("fuzz")
    paths = [
        encode(folder / name, speech_like(0.4, rate), rate, kind=kind, codec=codec, **options)
        for name, kind, codec, rate, options in FORMATS
    ]
    for kind, subtype in _SUBTYPES:
        paths.append(folder / f"{kind}{subtype}")
        soundfile.write(paths[-1], speech_like(0.4, 16000), 16000, format=kind, subtype=subtype)
    return [path.read_bytes() for path in paths]


_EXTREMES = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80"]
_EDITS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 63), st.integers(0, 511), st.integers(0, 9999)),  # where
        st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(_EXTREMES)),
        st.sampled_from(["replace", "replace", "insert", "delete", "cut"]),
    ),
    min_size=1,
    max_size=8,
)


def _damaged(content, edits):
    data = bytearray(content)
    for at, new, kind in edits:
        at = at % max(1, len(data))
        if kind == "replace":
            data[at : at + len(new)] = new
        elif kind == "insert":
            data[at:at] = new
        else:
            del data[at : at + len(new) if kind == "delete" else None]
    return bytes(data)


class _TooLongError(BaseException):
    """Not an Exception, so that no reader catches it."""


def _too_long(*_):
    raise _TooLongError(f"reading took more than {_LIMIT_S} s")


def test_damaged_files_give_audio_errors(contents, tmp_path):
    path = tmp_path / "damaged"
    whole, part = Utterance("a", str(path), 0.0), Utterance("a", str(path), 0.1, offset=0.1)
    reads = (
        lambda: audio_duration_s(path),
        lambda: check_header(part),
        *(lambda u=u: read_waveform(u) for u in (whole, part)),
    )

    @settings(
        max_examples=int(os.environ.get("SSL_ASR_FUZZ", "200")),
        deadline=None,
        database=None,
        derandomize="SSL_ASR_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(contents) - 1), _EDITS)
    def check(number, edits):
        path.write_bytes(_damaged(contents[number], edits))
        for read in reads:
            previous = signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(_LIMIT_S)
            try:
                with contextlib.suppress(AudioError):
                    read()
            finally:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, previous)

    check()
