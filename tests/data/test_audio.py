"""Reading audio: formats, resampling, offsets, channels, and errors with their reasons."""

import os

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from ssl_asr.data.audio import audio_duration_s, check_header, read_waveform, waveform_of
from ssl_asr.data.ffmpeg import DecodedSource
from ssl_asr.data.files import FileKey
from ssl_asr.errors import AudioError
from ssl_asr.types import Utterance

RATE = 16000
TONE = (0.5 * np.sin(np.arange(RATE) * 0.1)).astype(np.float32)


def utterance(path, duration=1.0, **more):
    return Utterance(id="u1", audio_filepath=str(path), duration=duration, where="train.jsonl:7", **more)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.flac", {}, 1e-4),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 0.2),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.2),
        ("a.mp3", {"format": "MP3"}, 0.2),
    ],
)
def test_supported_formats_are_read(tmp_path, name, options, tolerance):
    soundfile.write(tmp_path / name, TONE, RATE, **options)
    waveform = read_waveform(utterance(tmp_path / name))
    assert waveform.dtype == torch.float32
    assert len(waveform) == RATE
    # Lossy codecs are compared by level, all other codecs sample by sample.
    if tolerance < 0.1:
        assert (waveform - torch.from_numpy(TONE)).abs().max() <= tolerance
    else:
        assert abs(float(waveform.std()) - float(TONE.std())) < tolerance * float(TONE.std())


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_equals_torchaudio(tmp_path, rate):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, rate).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    expected = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE)
    torch.testing.assert_close(read_waveform(utterance(tmp_path / "a.wav")), expected)


def test_offset_and_duration_select_exact_samples(tmp_path):
    ramp = np.arange(2 * RATE, dtype=np.float32) / (2 * RATE)
    soundfile.write(tmp_path / "a.wav", ramp, RATE, subtype="FLOAT")
    piece = read_waveform(utterance(tmp_path / "a.wav", duration=0.5, offset=0.25))
    np.testing.assert_array_equal(piece.numpy(), ramp[RATE // 4 : RATE // 4 + RATE // 2])


def test_channels_are_mixed_selected_or_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, -0.5 * TONE], 1), RATE, subtype="FLOAT")
    tone = torch.from_numpy(TONE)
    one = utterance(tmp_path / "a.wav")
    torch.testing.assert_close(read_waveform(one), 0.25 * tone)
    torch.testing.assert_close(read_waveform(one, downmix="first"), tone)
    torch.testing.assert_close(read_waveform(utterance(tmp_path / "a.wav", channel=1), downmix="refuse"), -0.5 * tone)
    with pytest.raises(AudioError, match="2 channels") as caught:
        read_waveform(one, downmix="refuse")
    assert caught.value.reason == "many_channels"
    with pytest.raises(AudioError, match="channel 2 of 2"):
        read_waveform(utterance(tmp_path / "a.wav", channel=2))


def _missing(path):
    pass


def _empty(path):
    path.write_bytes(b"")


def _html(path):
    path.write_text("<html>404 Not Found</html>")


def _no_samples(path):
    soundfile.write(path, TONE[:0], RATE, format="WAV")


def _truncated_wav(path):
    soundfile.write(path, TONE, RATE, format="WAV")
    path.write_bytes(path.read_bytes()[:16000])


def _nan(path):
    soundfile.write(path, np.where(np.arange(RATE) == 99, np.nan, TONE), RATE, format="WAV", subtype="FLOAT")


FAULTS = {
    "missing_file": _missing,
    "empty_file": _empty,
    "not_audio": _html,
    "no_samples": _no_samples,
    "duration_mismatch": _truncated_wav,
    "non_finite": _nan,
}


@pytest.mark.parametrize("reason", FAULTS)
def test_error_names_utterance_manifest_line_and_reason(tmp_path, reason):
    path = tmp_path / "a.wav"
    FAULTS[reason](path)
    with pytest.raises(AudioError) as caught:
        read_waveform(utterance(path))
    assert caught.value.reason == reason
    for part in ("u1", "train.jsonl:7", "a.wav"):
        assert part in str(caught.value)
    if reason != "non_finite":
        with pytest.raises(AudioError):
            check_header(utterance(path))


@pytest.mark.filterwarnings("error")
def test_signalling_nan_gives_an_error_and_no_warning(tmp_path):
    soundfile.write(tmp_path / "a.wav", TONE, RATE, format="WAV", subtype="FLOAT")
    with (tmp_path / "a.wav").open("r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(bytes.fromhex("0100807f"))
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        read_waveform(utterance(tmp_path / "a.wav"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e300, np.nan, -np.inf])
def test_numbers_beyond_float32_give_an_error_and_no_warning(tmp_path, value):
    samples = np.where(np.arange(RATE) == 99, value, TONE.astype(np.float64))
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        waveform_of(samples, RATE, name="samples")
    soundfile.write(tmp_path / "a.wav", samples, RATE, format="WAV", subtype="DOUBLE")
    source = DecodedSource(FileKey.of(tmp_path / "a.wav"))
    assert not np.isfinite(source.read(0, RATE)[99])
    source.close()
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        read_waveform(utterance(tmp_path / "a.wav"))


def test_truncated_flac_is_detected_when_decoded(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 4 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError) as caught:
        read_waveform(utterance(path, duration=4.0))
    assert caught.value.reason in ("decode_error", "duration_mismatch")


def test_duration_is_read_from_header(tmp_path):
    soundfile.write(tmp_path / "a.flac", TONE, 8000)
    assert audio_duration_s(tmp_path / "a.flac") == 2.0


@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3", "opus"])
def test_a_page_of_the_web_under_the_name_of_audio_is_not_audio(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("<html><body>not found</body></html>")
    with pytest.raises(AudioError, match="not an audio file") as found:
        check_header(utterance(path))
    assert found.value.reason == "not_audio"


def test_a_missing_file_is_named_by_its_line_if_a_manifest_names_it(tmp_path):
    path = tmp_path / "nope.wav"
    with pytest.raises(AudioError) as found:
        audio_duration_s(path)
    assert str(found.value) == f"{path}: no such file. Check the path."
    with pytest.raises(AudioError) as found:
        audio_duration_s(path, where="train.jsonl:3")
    assert str(found.value) == f"nope.wav (train.jsonl:3): {path}: no such file. Check audio_filepath."
