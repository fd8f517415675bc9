"""What the check of samples finds, and what is done about it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from ssl_asr.config import schemas
from ssl_asr.data.audio import read_waveform, resample, waveform_of
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.module import ASRDataModule
from ssl_asr.data.sampler import SpeechCost
from ssl_asr.data.signal import (
    Signal,
    cancels,
    integer_scale,
    measured,
    notice_lines,
    notices,
    print_notices,
)
from ssl_asr.errors import AudioError
from ssl_asr.inference.batches import inference_data
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.running import RunOptions
from ssl_asr.types import Notice, Utterance
from tests.audio_files import speech_like

RATE = 16000
SPEECH = speech_like(3.0, RATE)


def utterance(path, duration=0.0, **more):
    return Utterance(id="u1", audio_filepath=str(path), duration=duration, **more)


def found_in(path, samples, subtype="FLOAT", **options):
    """The waveform and the findings of a file."""
    soundfile.write(path, samples, RATE, subtype=subtype)
    signals = []
    waveform_T = read_waveform(utterance(path), signals=signals, **options)
    return waveform_T.numpy(), [name for signal in signals for name in signal.findings()]


NOISE = 0.05 * np.random.default_rng(1).standard_normal(len(SPEECH)).astype(np.float32)
HALF = (np.arange(len(SPEECH)) < len(SPEECH) // 2)[:, None]


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([SPEECH, -SPEECH], 1),
        np.stack([SPEECH, -0.7 * SPEECH], 1),
        np.stack([SPEECH, 0.001 * NOISE - SPEECH], 1),
        np.stack([SPEECH, -SPEECH, SPEECH, -SPEECH], 1),
        np.stack([SPEECH + 0.3 * NOISE, 0.3 * NOISE - SPEECH], 1),
        np.where(HALF, np.stack([SPEECH, -SPEECH], 1), np.stack([SPEECH, SPEECH], 1)),
    ],
    ids=["exact", "unequal level", "with noise", "four channels", "noise in phase", "half of the time"],
)
def test_channels_of_opposite_phase_do_not_cancel(tmp_path, samples):
    waveform, findings = found_in(tmp_path / "a.wav", samples)
    np.testing.assert_array_equal(waveform, samples[:, 0])
    assert findings == ["opposite_phase"]
    waveform, findings = found_in(tmp_path / "a.wav", samples, downmix="first")
    assert findings == []


def test_the_louder_channel_is_used_if_the_first_is_faint(tmp_path):
    waveform, _ = found_in(tmp_path / "a.wav", np.stack([-0.69 * SPEECH, SPEECH], 1))
    np.testing.assert_array_equal(waveform, SPEECH)


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([SPEECH, SPEECH], 1),
        np.stack([SPEECH, 0 * SPEECH], 1),
        np.stack([SPEECH, NOISE], 1),
        np.stack([SPEECH, -0.1 * SPEECH], 1),
        np.stack([SPEECH, np.roll(SPEECH, 7)], 1),
        np.stack([0 * SPEECH] * 5 + [SPEECH], 1),
    ],
    ids=["equal", "one silent", "unrelated", "crosstalk", "delayed", "one of six"],
)
def test_other_channels_are_mixed(tmp_path, samples):
    waveform, findings = found_in(tmp_path / "a.wav", samples)
    np.testing.assert_array_equal(waveform, samples.mean(axis=1))
    assert findings == []


@pytest.mark.parametrize(("bits", "level"), [(16, 1.0), (16, 0.01), (24, 1.0), (32, 1.0)])
def test_integers_as_floats_are_scaled(tmp_path, bits, level):
    integers = np.rint(SPEECH * level * 2 ** (bits - 1))
    waveform, findings = found_in(tmp_path / "a.wav", integers, "DOUBLE")
    np.testing.assert_allclose(waveform, SPEECH * level, atol=1e-4)
    assert findings == ["integers_as_floats"]
    # A quiet part is scaled as the whole file is.
    part = read_waveform(utterance(tmp_path / "a.wav", 0.01, offset=0.5)).numpy()
    np.testing.assert_array_equal(part, waveform[8000:8160])


def test_integers_that_were_processed_are_scaled(tmp_path):
    waveform, findings = found_in(tmp_path / "a.wav", SPEECH * 32768 + 0.25)
    np.testing.assert_allclose(waveform, SPEECH, atol=1e-4)
    assert findings == ["integers_as_floats"]


def test_findings_are_named(tmp_path):
    square = np.clip(20 * SPEECH, -0.8, 0.8)
    cases = {
        "silent": (0.0001 * SPEECH, "FLOAT"),
        "over_range": (2 * SPEECH / np.abs(SPEECH).max(), "FLOAT"),
        "clipped": (square, "PCM_16"),
        "dc_offset": (SPEECH + 0.2, "PCM_16"),
    }
    for name, (samples, subtype) in cases.items():
        waveform, findings = found_in(tmp_path / "a.wav", samples, subtype)
        assert findings == [name]
        np.testing.assert_allclose(waveform, samples, atol=1e-4)
    assert found_in(tmp_path / "a.wav", SPEECH, "PCM_16")[1] == []
    assert found_in(tmp_path / "a.wav", 0 * SPEECH, "PCM_16")[1] == ["silent"]
    assert found_in(tmp_path / "a.wav", 0.5 * np.sin(np.arange(RATE) * 0.1), "PCM_16")[1] == []


@pytest.mark.parametrize(
    "samples",
    [np.full(10, 0.1), np.r_[np.full(RATE, 0.04), 0.0], np.tile(np.r_[np.zeros(200), 0.4 * np.hanning(51)], 200)],
    ids=["a constant", "a constant and a click", "pulses with pauses"],
)
def test_samples_that_rest_are_not_clipped(tmp_path, samples):
    assert "clipped" not in found_in(tmp_path / "a.wav", samples, "PCM_16")[1]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.2, 0.2), (-0.3, 0.8), (-1.0, 0.2), (-0.05, 0.95)])
def test_clipping_is_found_at_any_level_and_on_one_side(tmp_path, low, high):
    assert "clipped" in found_in(tmp_path / "a.wav", np.clip(20 * SPEECH, low, high), "PCM_16")[1]
    one_side = np.minimum(SPEECH, 0.3 * SPEECH.max())
    assert "clipped" in found_in(tmp_path / "a.wav", one_side, "PCM_16")[1]


def test_samples_above_every_format_are_refused(tmp_path):
    with pytest.raises(AudioError, match="samples up to 1e"):
        found_in(tmp_path / "a.wav", SPEECH * 1e20 / np.abs(SPEECH).max())


def test_signals_of_parts_are_those_of_the_whole():
    silent, loud = Signal(samples=100, peak=0.0), Signal(samples=100, peak=0.5, clipped=3)
    assert (silent + loud).findings() == ["clipped"]
    assert (loud + Signal(samples=300, peak=0.4)).findings() == []
    assert [one.finding for one in notices("a", [silent, silent])] == ["silent"]
    assert notices("a", []) == ()


def test_notices_are_said_once_with_counts_and_names(capsys):
    found = [Notice(name, "silent") for name in "abcda"] + [Notice("x", "clipped")]
    lines = notice_lines(found)
    assert [line.split(":")[0] for line in lines] == ["silent", "clipped"]
    assert "a, b, c … (4 recordings)" in lines[0]
    assert "x (1 recording)" in lines[1]
    print_notices(found)
    assert capsys.readouterr().err.count("warning: ") == 2


# Every path that reads audio -------------------------------------------------------------------------------------


@pytest.fixture
def stereo(tmp_path):
    """Manifest of one file with channels of opposite phase, and one of equal channels."""
    rows = []
    for name, sign in (("anti", -1), ("same", 1)):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([SPEECH, sign * SPEECH], 1), RATE)
        rows.append({"audio_filepath": f"{name}.wav", "text": "a"})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_manifest(tmp_path / "m.jsonl")


@pytest.mark.parametrize("workers", [0, 2])
def test_notices_of_workers_reach_the_data_module(stereo, workers, capsys):
    run = RunOptions(max_batch_s=4.0, num_workers=workers, accelerator="cpu")
    data = inference_data(
        {"input": stereo}, tokenizer=None, limits=Limits(), encoder=SpeechCost(), run=run, console=None
    )
    for _ in range(2):
        assert sum(len(batch) for loader in data.test_dataloader() for batch in loader) == 2
    assert list(data.notices) == [Notice("anti", "opposite_phase")]
    data.print_notices()
    assert capsys.readouterr().err.startswith("warning: opposite_phase: anti (1 recording): ")


def test_downmix_of_a_command_reaches_the_audio(stereo):
    run = RunOptions(max_batch_s=4.0, num_workers=0, accelerator="cpu", downmix="refuse")
    data = inference_data(
        {"input": stereo}, tokenizer=None, limits=Limits(), encoder=SpeechCost(), run=run, console=None
    )
    assert isinstance(data, ASRDataModule)
    # Found in the header, before audio is read.
    assert [skip.reason for skip in data.selections["input"].skips] == ["many_channels"] * 2
    assert sum(len(batch) for batch in data.test_dataloader()[0]) == 0


@pytest.mark.parametrize("command", ["Evaluate", "Transcribe", "Align", "Extract", "TuneDecoding"])
def test_every_command_that_reads_audio_has_downmix(command):
    assert getattr(schemas, f"{command}Config").downmix == ("mean" if command == "Extract" else None)


def test_parts_of_a_long_recording_are_mixed_alike(stereo):
    recording = Recording(stereo[0], downmix="first")
    np.testing.assert_allclose(recording.part(0.5, 1.0).waveform_T, SPEECH[8000:24000], atol=1e-4)
    recording = Recording(stereo[0])
    parts = [recording.part(start, 1.0).waveform_T for start in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(torch.cat(parts), SPEECH, atol=1e-4)
    assert notices("anti", recording.signals) == (Notice("anti", "opposite_phase"),)


def test_batches_carry_notices(stereo):
    dataset = SpeechDataset(stereo, tokenizer=None)
    batch = collate([dataset[0], dataset[1]])
    assert batch.notices == [Notice("anti", "opposite_phase")]


# Samples in memory, and sample rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float64"])
def test_arrays_of_every_type_are_scaled(kind):
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        array = SPEECH.astype(dtype)
    else:
        full = 2.0 ** (15 if kind == "int64" else 8 * dtype.itemsize - 1)
        array = (np.floor(SPEECH * full) + (full if dtype.kind == "u" else 0)).astype(dtype)
    found = waveform_of(array, RATE, name="a")
    np.testing.assert_allclose(found, SPEECH, atol=1 / 100 if dtype.itemsize == 1 else 1e-3)


@pytest.mark.parametrize("rate", [44101, 44099, 44056, 15999, 22254, 11127, 1009, 999_983])
def test_rates_without_a_common_divisor_are_resampled_well(rate):
    frequency = min(440, rate / 10)
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(rate, dtype=torch.float64) / rate).float()
    found = resample(tone, rate)
    assert len(found) == RATE
    expected = torch.sin(2 * torch.pi * frequency * torch.arange(RATE, dtype=torch.float64) / RATE)
    # torchaudio's filters of usual rates reach 68 dB.
    error = (found - expected)[2000:-2000]
    assert 10 * torch.log10(expected.square().mean() / error.square().mean()) > 90


@pytest.mark.parametrize("rate", [44101, 11127])
def test_frequencies_above_8_khz_or_none_are_left(rate):
    """What 16 kHz cannot represent is removed, and is not folded to other frequencies."""
    high = torch.sin(2 * torch.pi * 10_000 * torch.arange(rate, dtype=torch.float64) / rate).float()
    if rate > 20_000:
        assert resample(high, rate)[2000:-2000].abs().max() < 1e-3
    impulse = torch.zeros(rate)
    impulse[rate // 2] = 1.0
    # A constant keeps its level: the sum of an impulse is its share of the samples.
    assert float(resample(impulse, rate).sum()) == pytest.approx(RATE / rate, rel=1e-3)


def test_long_audio_is_resampled_in_blocks_without_a_seam(monkeypatch):
    noise = torch.randn(3 * 44101)
    whole = resample(noise, 44101)
    monkeypatch.setattr("ssl_asr.data.audio._RESAMPLED_AT_A_TIME", 10_007)
    assert torch.equal(resample(noise, 44101), whole)


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 88200, 96000])
def test_usual_rates_are_resampled_as_torchaudio_does(rate):
    noise = torch.randn(rate // 4)
    torch.testing.assert_close(resample(noise, rate), torchaudio.transforms.Resample(rate, RATE)(noise), rtol=0, atol=0)


_PEAK = """
import resource, sys, torch
from ssl_asr.data.audio import resample
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
resample(torch.randn(44100), 44100)
before = peak_mb()
for rate in map(int, sys.argv[1:]):
    resample(torch.randn(rate), rate)
print(peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_no_rate_needs_much_memory():
    """Filters of torchaudio for 44,101 Hz take 9 GB, and for 44,056 Hz 360 MB."""
    rates = ["44101", "11127", "44056", "22254", "96001", "1009", "15999"]
    done = subprocess.run([sys.executable, "-c", _PEAK, *rates], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


# Limits of the findings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "findings"),
    [
        (Signal(), []),
        (Signal(samples=100, peak=0.5), []),
        (Signal(samples=100, peak=1.25), []),
        (Signal(samples=100, peak=1.2501), ["over_range"]),
        # -70 dB is a 3162nd of full scale.
        (Signal(samples=100, peak=0.000317), []),
        (Signal(samples=100, peak=0.000316), ["silent"]),
        (Signal(samples=0, peak=0.0), []),
        (Signal(samples=1000, peak=0.5, clipped=10), []),
        (Signal(samples=1000, peak=0.5, clipped=11), ["clipped"]),
        (Signal(samples=1000, peak=0.5, total=50.0), []),
        (Signal(samples=1000, peak=0.5, total=-50.1), ["dc_offset"]),
        (Signal(samples=1, peak=0.5, lost=1), ["damaged"]),
        (Signal(samples=1, peak=0.5, scaled=True, cancelled=True), ["integers_as_floats", "opposite_phase"]),
    ],
)
def test_findings_begin_at_their_limits(signal, findings):
    assert signal.findings() == findings


def test_signals_of_parts_are_added():
    one = Signal(samples=10, peak=0.3, total=1.0, clipped=2, scaled=True, lost=3)
    other = Signal(samples=5, peak=0.4, total=-3.0, clipped=1, cancelled=True, lost=1)
    assert one + other == Signal(15, 0.4, -2.0, 3, True, True, 3)
    assert one + one == Signal(20, 0.3, 2.0, 4, True, False, 3)


@pytest.mark.parametrize(
    ("peak", "only_integers", "scale"),
    [
        (1.0, True, None),
        (2.0, True, 2.0**15),
        (8.0, False, None),
        (8.5, False, 2.0**15),
        (2.0**15, True, 2.0**15),
        (2.0**15 + 1, True, 2.0**23),
        (2.0**23 + 1, False, 2.0**31),
        (2.0**31, True, 2.0**31),
    ],
)
def test_full_scale_is_the_next_integer_format(peak, only_integers, scale):
    assert integer_scale(peak, only_integers=only_integers) == scale


def test_samples_above_every_integer_format_are_an_overflow():
    with pytest.raises(OverflowError, match=r"samples up to 4\.29e\+09"):
        integer_scale(2.0**32, only_integers=True)


@pytest.mark.parametrize(
    ("samples", "figures"),
    [
        ([0.5, -0.25], (2, 0.5, 0.25, 0)),
        ([-0.5, 0.25, 0.0], (3, 0.5, -0.25, 0)),
        # Three equal samples at the peak are clipped, two are not.
        ([0.0, 0.5, 0.5, 0.0, -0.4], (5, 0.5, 0.6, 0)),
        ([0.0, 0.5, 0.5, 0.5, 0.0, -0.4], (6, 0.5, 1.1, 3)),
        # A constant is no sound.
        ([0.5, 0.5, 0.5, 0.5], (4, 0.5, 2.0, 0)),
        ([0.1, -0.5, -0.5, -0.5, 0.0, 0.2], (6, 0.5, -1.2, 3)),
        ([0.0, 0.25, 0.25, 0.25, 0.5, -0.1], (6, 0.5, 1.15, 0)),
        # Samples above 1 are clipped, but not those of a recording that is far above full scale.
        ([1.0, 1.2, -1.1, 0.0], (4, 1.2, 1.1, 2)),
        ([1.0, 1.3, -1.1, 0.0], (4, 1.3, 1.2, 0)),
        ([0.0, 0.0, 0.0], (3, 0.0, 0.0, 0)),
        ([], (0, 0.0, 0.0, 0)),
    ],
)
def test_figures_of_samples(samples, figures):
    found = measured(np.array(samples, dtype=np.float32), Signal())
    assert (found.samples, found.clipped) == (figures[0], figures[3])
    assert (found.peak, found.total) == (pytest.approx(figures[1]), pytest.approx(figures[2]))


@pytest.mark.parametrize(
    ("level", "loud_seconds", "cancelled"),
    [
        # The mean of x and -a x has (1 - a)^2 / (1 + a^2) of the power of unrelated channels: 0.2 and 0.155.
        (0.5, 10, False),
        (0.55, 10, True),
        # Cancelled seconds with 10 % and with 20 % of the power.
        (1.0, 1, False),
        (1.0, 2, True),
    ],
)
def test_channels_cancel_from_a_share_of_power_and_time(level, loud_seconds, cancelled):
    tone = np.sin(np.arange(10 * 1000) * 0.3).astype(np.float32)
    opposite = np.arange(len(tone)) < loud_seconds * 1000
    samples_TC = np.stack([tone, np.where(opposite, -level * tone, level * tone)], 1)
    assert cancels(samples_TC, samples_TC.mean(axis=1), 1000) == cancelled


def test_notices_name_three_recordings_and_count_all():
    found = [Notice(f"u{i}", "silent") for i in range(4)] + [Notice("u0", "silent"), Notice("u7", "clipped")]
    silent, clipped = notice_lines(found)
    assert silent.startswith("silent: u0, u1, u2 … (4 recordings): ")
    assert clipped.startswith("clipped: u7 (1 recording): ")
    assert notice_lines(found[:3])[0].startswith("silent: u0, u1, u2 (3 recordings): ")


def test_a_file_of_an_odd_rate_does_not_cost_the_others(tmp_path):
    """A folder with files of several rates, one of which is nonsense."""
    rates = {"odd.wav": 44_101, "usual.wav": 44_100, "low.wav": 1_009, "nonsense.wav": 7}
    for name, rate in rates.items():
        soundfile.write(tmp_path / name, np.full(max(rate, 100), 0.1, dtype=np.float32), rate)
    rows = [{"audio_filepath": name, "duration": 1.0, "text": "a", "id": name} for name in rates]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = SpeechDataset(read_manifest(tmp_path / "m.jsonl"), tokenizer=None, skip_bad_audio=True)
    batch = collate([dataset[i] for i in range(len(rates))])
    assert batch.ids == ["odd.wav", "usual.wav", "low.wav"]
    assert [(skip.id, skip.reason) for skip in batch.skipped] == [("nonsense.wav", "bad_sample_rate")]
    assert "sample rate of 7 Hz, expected 1,000 to 1,000,000 Hz" in batch.skipped[0].detail
