"""Transcription in Python."""

import numpy as np
import pytest
import soundfile
import torch

import ssl_asr
from ssl_asr.errors import AudioError, ConfigError
from tests.training.toy_runs import build, toy_overrides


@pytest.fixture(scope="module")
def run(toy_checkpoints, toy_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    made = build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus))
    made.trainer.fit(made.module, datamodule=made.data)
    return folder


@pytest.fixture
def files(toy_corpus):
    return sorted(toy_corpus["dev"].parent.glob("dev*.wav"))


def test_files_and_samples_give_the_same_text_in_their_order(run, files):
    model = ssl_asr.load(run, device="cpu")
    by_file = model.transcribe(files, vad=False)
    assert [one.id for one in by_file] == [str(file) for file in files]
    samples = [soundfile.read(file, dtype="float32")[0] for file in files]
    by_samples = model.transcribe([samples[0], torch.from_numpy(samples[1]), *samples[2:]], max_batch_s=1.0, vad=False)
    assert [one.text for one in by_samples] == [one.text for one in by_file]
    assert model.transcribe(files[0], vad=False)[0].text == by_file[0].text


def test_samples_of_another_rate_are_resampled(run, files):
    model = ssl_asr.load(run, device="cpu")
    samples, _ = soundfile.read(files[0], dtype="float32")
    faster = torch.nn.functional.interpolate(torch.from_numpy(samples)[None, None], scale_factor=2)[0, 0]
    assert len(model.transcribe(faster, sample_rate=32000)) == 1


def test_decoder_and_times_are_options_of_load(run, files):
    options = {"beam_size": 4, "n_best": 3}
    model = ssl_asr.load(run, device="cpu", decoder="ctc_beam", decoder_options=options, times="entropy")
    (found,) = model.transcribe(files[0], vad=False)
    assert 1 <= len(found.alternatives) <= 2
    assert [word.text for word in found.words] == found.text.split()


def test_long_samples_are_transcribed_by_windows(run):
    model = ssl_asr.load(run, device="cpu")
    noise = np.random.default_rng(0).standard_normal(16000 * 12).astype(np.float32)
    (whole,) = model.transcribe(noise, vad=False)
    (parts,) = model.transcribe(noise, chunk_s=5.0, stride_s=1.0, vad=False)
    assert isinstance(parts.text, str)
    assert whole.id == parts.id == "0"


def test_integers_and_channels_in_memory_give_the_text_of_floats(run, files):
    model = ssl_asr.load(run, device="cpu")
    samples, _ = soundfile.read(files[0], dtype="int16")
    (expected,) = model.transcribe(files[0])
    stereo = np.stack([samples, samples])
    for given in (samples, samples.astype(np.int64), stereo, stereo.T, torch.from_numpy(stereo), samples[::-1][::-1]):
        assert model.transcribe(given)[0].text == expected.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"chunk_s": 30.0, "stride_s": 4.0, "batch_s": None, "vad": None, "detect_every_s": None}),
        (
            {"chunk_s": 9.0, "vad": True, "detect_every_min": 2.5},
            {"chunk_s": 9.0, "vad": True, "detect_every_s": 150.0},
        ),
    ],
)
def test_settings_of_long_recordings_have_the_documented_defaults(run, monkeypatch, given, expected):
    seen = []
    monkeypatch.setattr("ssl_asr.inference.transcriber.check_detection", lambda *args: seen.append(args[1]))
    ssl_asr.load(run).transcribe([], **given)
    assert {key: getattr(seen[0], key) for key in expected} == expected


def test_findings_are_issued_as_warnings(run):
    model = ssl_asr.load(run, device="cpu")
    tone = 0.5 * np.sin(np.arange(16000) * 0.1)
    with pytest.warns(UserWarning, match="opposite_phase: 0 "):
        model.transcribe(np.stack([tone, -tone]))
    with pytest.raises(AudioError, match="2 channels"):
        model.transcribe(np.stack([tone, tone]), downmix="refuse")


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (np.zeros((100, 100), np.float32), "not clear which dimension"),
        (np.zeros((2, 2), np.float32), "not clear which dimension"),
        (np.zeros((1, 1, 100), np.float32), "shape (1, 1, 100)"),
        (np.zeros(100, bool), "type bool"),
        (np.zeros(100, complex), "type complex128"),
        (np.zeros(0, np.float32), "has no samples"),
        (np.full(9, np.nan, "f4"), "NaN or infinite"),
        (np.array([0.5, 1e12]), "up to 1e\\+12"),
    ],
)
def test_ambiguous_and_damaged_arrays_are_refused(run, audio, said):
    with pytest.raises(AudioError, match=said.replace("(", "\\(").replace(")", "\\)")):
        ssl_asr.load(run, device="cpu").transcribe(audio)


def test_wrong_decoders_are_refused(run):
    with pytest.raises(ConfigError, match="Did you mean 'ctc_beam'"):
        ssl_asr.load(run, decoder="ctc_beem")
    with pytest.raises(ConfigError, match="beam_sise"):
        ssl_asr.load(run, decoder="ctc_beam", decoder_options={"beam_sise": 3})
    with pytest.raises(ConfigError, match="does not decode models of task ctc"):
        ssl_asr.load(run, decoder="whisper_greedy")
