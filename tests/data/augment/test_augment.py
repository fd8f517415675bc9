"""Augmentation: levels, lengths and bands against values worked out by hand, and equal batches for any workers."""

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data.augment import Augmentation
from ssl_asr.data.augment.channels import BandLimit, Codec, FrequencyDrop, TimeDrop, Volume, coded
from ssl_asr.data.augment.sounds import Noise, Rooms
from ssl_asr.errors import AudioError, ConfigError, UserErrors
from ssl_asr.types import Utterance
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of

RATE = 16_000


def rng(seed=0):
    return np.random.default_rng(seed)


def tone(hz, seconds=1.0, level=0.1):
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)


def power(waveform):
    return float(waveform.square().mean())


def share(waveform, low, high):
    """Fraction of the power between two frequencies."""
    spectrum = torch.fft.rfft(waveform).abs().square()
    hz = torch.linspace(0, RATE / 2, len(spectrum))
    return float(spectrum[(hz >= low) & (hz < high)].sum() / spectrum.sum())


def manifest(folder, **recordings):
    """Manifest of recordings, each float32 samples."""
    rows = []
    for name, samples in recordings.items():
        soundfile.write(folder / f"{name}.wav", np.asarray(samples), RATE, subtype="FLOAT")
        rows.append({"audio_filepath": f"{name}.wav", "duration": len(samples) / RATE})
    (folder / "sounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "sounds.jsonl")


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5, 70.0])
def test_noise_has_the_ratio_that_was_drawn(tmp_path, seconds):
    """Shorter noise is repeated, longer noise is cut, and very long noise is read in part."""
    path = manifest(tmp_path, noise=0.3 * rng(1).standard_normal(round(seconds * RATE)).astype(np.float32))
    change, speech = Noise(manifest=path, snr_db=[5.0, 15.0], probability=1.0).build(), tone(440)
    ratios = []
    for seed in range(8):
        added = change(speech, rng(seed)) - speech
        assert added.shape == speech.shape
        ratios.append(10 * math.log10(power(speech) / power(added)))
        assert power(added[:4000]) == pytest.approx(power(added), rel=0.2), "noise from the first sample on"
    assert 5 <= min(ratios) < 9
    assert 11 < max(ratios) <= 15
    assert torch.equal(change(speech, rng(3)), change(speech, rng(3)))


def test_noise_begins_anywhere_and_goes_on_from_its_beginning(tmp_path):
    ramp = torch.arange(1, 101) / 100.0
    change = Noise(manifest=manifest(tmp_path, ramp=ramp), snr_db=[0.0, 0.0], probability=1.0).build()
    speech = torch.full((250,), 0.5)
    starts = set()
    for seed in range(30):
        added = change(speech, rng(seed)) - speech
        steps = torch.round(added / added.max() * 100).long().tolist()
        assert all(before % 100 + 1 == after for before, after in itertools.pairwise(steps))
        starts.add(steps[0])
    assert len(starts) > 15


def test_silence_gets_no_noise_and_silent_noise_is_none(tmp_path):
    change = Noise(manifest=manifest(tmp_path, quiet=np.zeros(100)), snr_db=[0.0, 0.0], probability=1.0).build()
    assert torch.equal(change(tone(440), rng()), tone(440))
    (tmp_path / "loud").mkdir()
    change = Noise(manifest=manifest(tmp_path / "loud", a=np.ones(100)), snr_db=[0.0, 0.0], probability=1.0).build()
    assert torch.equal(change(torch.zeros(50), rng()), torch.zeros(50))


def test_a_room_is_a_convolution_that_keeps_times_and_power(tmp_path):
    response = torch.zeros(1000)
    response[120], response[420], response[999] = 0.5, 0.2, -0.1
    change = Rooms(manifest=manifest(tmp_path, room=response), probability=1.0).build()
    speech = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 0.1
    found = change(speech, rng())
    # The direct sound is at once, the others 300 and 879 samples later.
    expected = 0.5 * speech
    expected[300:] += 0.2 * speech[:-300]
    expected[879:] -= 0.1 * speech[:-879]
    expected *= math.sqrt(power(speech) / power(expected))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_missing_manifest_says_that_its_path_is_from_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_ASR_DATA", str(tmp_path / "corpora"))
    in_folder, elsewhere = tmp_path / "corpora" / "noise" / "noise.jsonl", tmp_path / "noise.jsonl"
    for path, origin in ((in_folder, f" (from SSL_ASR_DATA={tmp_path}/corpora)"), (elsewhere, "")):
        with pytest.raises(ConfigError, match="Give the path of a manifest") as caught:
            Noise(manifest=str(path), snr_db=[0.0, 0.0], probability=1.0).build()
        assert f"{path}{origin}: no such manifest" in str(caught.value).replace("manifest: ", "", 1)
    monkeypatch.delenv("SSL_ASR_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"noise.jsonl \(SSL_ASR_DATA is not set\): no such"):
        Noise(manifest="../shared/data/noise/noise.jsonl", snr_db=[0.0, 0.0], probability=1.0).build()


def test_a_shard_of_noise_that_cannot_be_read_is_named_once(tmp_path):
    rows = [{"audio_filepath": f"lost.tar::{name}.wav", "duration": 1.0} for name in "abc"]
    (tmp_path / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AudioError, match=r"lost.tar::a.wav: no such shard"):
        Noise(manifest=str(tmp_path / "noise.jsonl"), snr_db=[0.0, 0.0], probability=1.0).build()


@pytest.mark.parametrize("option", [partial(Noise, snr_db=[0.0, 5.0]), Rooms])
def test_recordings_that_cannot_be_read_are_errors_before_training(tmp_path, option):
    path = manifest(tmp_path, good=np.ones(100), bad=np.ones(100), cut=np.ones(100))
    (tmp_path / "bad.wav").unlink()
    (tmp_path / "cut.wav").write_bytes(b"")
    with pytest.raises(UserErrors, match=r"(?s)sounds.jsonl:2.*no such file.*sounds.jsonl:3"):
        option(manifest=path, probability=1.0).build()
    none = {name: option(manifest=str(tmp_path / f"{name}.jsonl"), probability=1.0) for name in ("one", "two")}
    with pytest.raises(UserErrors) as caught:
        Augmentation({**none, "three": option(manifest=path, probability=1.0)}, seed=0)
    errors = list(map(str, caught.value.errors))
    assert len(errors) == 4
    for name, error in zip(("one", "two"), errors, strict=False):
        start = f"audio_augment.{name}.manifest: {tmp_path / name}.jsonl: no such manifest. "
        assert error.startswith(start)
        assert "openslr.org" in error


def test_volume_is_a_factor():
    louder = Volume(gain_db=[6.0, 6.0], probability=1.0)(tone(440), rng())
    torch.testing.assert_close(louder, tone(440) * 10**0.3)
    gains = [power(Volume(gain_db=[-20.0, 0.0], probability=1.0)(tone(440), rng(seed))) for seed in range(20)]
    assert min(gains) >= 0.01 * power(tone(440)) * 0.999
    assert max(gains) <= power(tone(440)) * 1.001
    assert max(gains) > 5 * min(gains)


def test_band_limit_keeps_its_band():
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    found = BandLimit(low_hz=[300.0, 300.0], high_hz=[3400.0, 3400.0], probability=1.0)(noise, rng())
    assert found.shape == noise.shape
    assert share(found, 360, 3340) > 0.95
    assert share(found, 0, 240) + share(found, 3460, 8001) < 1e-3
    inside = tone(1000)
    kept = BandLimit(low_hz=[0.0, 0.0], high_hz=[8000.0, 8000.0], probability=1.0)(inside, rng())
    torch.testing.assert_close(kept[800:-800], inside[800:-800], atol=1e-3, rtol=0)


@pytest.mark.parametrize("codec", ["mulaw", "alaw", "gsm", "opus", "vorbis", "mp3"])
@pytest.mark.parametrize("seconds", [0.011, 1.3337])
def test_codecs_keep_length_times_and_speech(codec, seconds):
    generator = torch.Generator().manual_seed(0)
    speech = (
        tone(500, seconds, 0.3)
        * torch.rand(round(seconds * RATE) // 800 + 1, generator=generator)[torch.arange(round(seconds * RATE)) // 800]
    )
    found = coded(speech, codec, 0.5)
    assert found.shape == speech.shape
    if seconds > 1:
        lags = range(-400, 401)
        best = max(lags, key=lambda lag: float((found.roll(-lag)[500:-500] * speech[500:-500]).sum()))
        assert abs(best) <= 16, "a delay of at most a millisecond"
        assert power(found - speech) < 0.1 * power(speech)
        assert power(found - speech) > 0


def test_more_compression_is_further_from_the_speech():
    speech = tone(500) + tone(1700) + 0.05 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    for codec in ("opus", "vorbis", "mp3"):
        errors = [power(coded(speech, codec, level) - speech) for level in (0.0, 1.0)]
        assert errors[0] < errors[1]
    drawn = Codec(codecs=["mulaw", "mp3"], compression=[0.0, 0.0], probability=1.0)
    found = [drawn(speech, rng(seed)) for seed in range(12)]
    expected = [coded(speech, "mulaw", 0.0), coded(speech, "mp3", 0.0)]
    assert {next(i for i, e in enumerate(expected) if torch.equal(e, one)) for one in found} == {0, 1}


def test_time_drops_are_silent_parts():
    ones = torch.ones(RATE)
    drop = TimeDrop(count=[2, 2], length_s=[0.1, 0.2], probability=1.0)
    for seed in range(20):
        zeros = int((drop(ones, rng(seed)) == 0).sum())
        assert 1600 <= zeros <= 6400
    assert bool((ones == 1).all()), "the input is not changed"
    assert torch.equal(TimeDrop(count=[0, 0], length_s=[0.1, 0.2], probability=1.0)(ones, rng()), ones)
    assert not TimeDrop(count=[1, 1], length_s=[2.0, 2.0], probability=1.0)(ones, rng()).any()


def test_frequency_drops_are_narrow():
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    drop = FrequencyDrop(count=[1, 1], width_hz=400.0, probability=1.0)
    lost = [1 - power(drop(noise, rng(seed))) / power(noise) for seed in range(20)]
    # 400 Hz of 8,000, and edges of 100 Hz on both sides.
    assert max(lost) == pytest.approx(0.06, abs=0.02)
    assert drop(noise, rng()).shape == noise.shape


def said(name):
    return Utterance(id=name, audio_filepath="a.wav", duration=1.0)


def test_changes_follow_in_order_with_their_probabilities():
    double = Volume(gain_db=[20.0, 20.0], probability=1.0)
    cut = TimeDrop(count=[1, 1], length_s=[2.0, 2.0], probability=0.25)
    both = Augmentation({"volume": double, "drop": cut}, seed=0)
    found = [float(both(torch.ones(10), said(str(number)), 0).max()) for number in range(400)]
    assert set(found) == {0.0, 10.0}
    assert 70 <= found.count(0.0) <= 130


def test_a_change_depends_on_seed_epoch_and_id_only():
    def changed(name, epoch=0, seed=0):
        gain = Volume(gain_db=[-20.0, 20.0], probability=1.0)
        return float(Augmentation({"volume": gain}, seed=seed)(torch.ones(1), said(name), epoch))

    assert changed("a") == changed("a")
    assert len({changed("a"), changed("b"), changed("a", epoch=1), changed("a", seed=1)}) == 4
    gain = Volume(gain_db=[-20.0, 20.0], probability=1.0)
    first, second = (float(Augmentation({"one": gain, "two": gain}, seed=0)(torch.ones(1), said("a"), 0)), changed("a"))
    assert first != pytest.approx(second**2), "the second change draws other numbers"


def test_training_audio_is_changed_and_dev_audio_is_not(config, tmp_path):
    noise = manifest(tmp_path, noise=rng(1).standard_normal(8000).astype(np.float32))
    options = {"noise": Noise(manifest=noise, snr_db=[0.0, 10.0], probability=1.0)}

    def batches(workers, epoch=0, augment=options):
        data = data_of(replace(config, num_workers=workers), epoch=epoch, audio_augment=augment)
        (dev,) = data.val_dataloader()
        return {
            utterance.id: waveform
            for batch in (*data.train_dataloader(), *dev)
            for utterance, waveform in zip(batch.utterances, batch.waveform_BT, strict=True)
        }

    plain, alone, workers, later = batches(0, augment=None), batches(0), batches(2), batches(0, epoch=1)
    for name, waveform in alone.items():
        assert torch.equal(waveform, workers[name])
        assert torch.equal(waveform, plain[name]) == name.startswith("dev")
        assert torch.equal(waveform, later[name]) == name.startswith("dev")
    assert not torch.equal(alone["train0"], alone["train1"]), "one file, two utterances"
