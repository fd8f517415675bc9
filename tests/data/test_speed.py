"""Speed and tempo: draws, limits, lengths, audio, and their use in training only."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssl_asr.data.audio import read_waveform, resample
from ssl_asr.data.filters import Limits
from ssl_asr.data.speed import SpeedPerturbation, changed_lengths, stretched
from ssl_asr.data.targets import count_targets
from ssl_asr.types import Utterance
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of
from tests.training.toy_runs import build, toy_overrides

FACTORS = [0.9, 1.0, 1.1]


@dataclass
class Spelling:
    def encode(self, utterance):
        return list(utterance.text)

    def unseen(self, utterance):
        return []


def utterances(*durations, text="ab"):
    return [Utterance(id=str(i), audio_filepath="a.wav", duration=d, text=text) for i, d in enumerate(durations)]


def perturbation(rows, limits=None, seed=0, tokenizer=None, speeds=FACTORS, tempos=()):
    targets = None if tokenizer is None else count_targets(rows, tokenizer)
    durations_N = np.array([row.duration for row in rows])
    return SpeedPerturbation(speeds, tempos, durations_N, limits or Limits(), targets=targets, seed=seed)


def test_factors_are_uniform_differ_by_epoch_and_are_reproducible():
    rows = utterances(*[2.0] * 3000)
    speeds = perturbation(rows)
    first, second = speeds.draw(0), speeds.draw(1)
    assert (first == perturbation(rows).draw(0)).all()
    assert (first[:, 0] != second[:, 0]).mean() == pytest.approx(2 / 3, abs=0.05)
    for factor in FACTORS:
        assert (first[:, 0] == factor).mean() == pytest.approx(1 / 3, abs=0.04)
    assert (first[:, 1] == 1).all()
    assert (first != perturbation(rows, seed=1).draw(0)).any()
    pairs = perturbation(rows, speeds=[0.9, 1.1], tempos=[0.8, 1.0, 1.25]).draw(0)
    for pair in itertools.product([0.9, 1.1], [0.8, 1.0, 1.25]):
        assert (pairs == pair).all(axis=1).mean() == pytest.approx(1 / 6, abs=0.03)
    assert (perturbation(rows, speeds=[], tempos=[0.8]).draw(0) == [1.0, 0.8]).all()


def test_factor_outside_limits_is_never_drawn():
    # 28 s / 0.9 is over 30 s; 1.05 s / 1.1 is under 1 s; 20 frames a second hold "abababab" in 0.4 s, not less.
    limits = Limits(min_s=1.0, max_s=30.0, ctc_frames=lambda samples: samples // 800)
    rows = [*utterances(28.0, 1.05), *utterances(1.2, text="ab" * 12), *utterances(10.0)]
    speeds = perturbation(rows, limits, tokenizer=Spelling())
    seen = np.array([speeds.draw(epoch)[:, 0] for epoch in range(200)])
    assert set(seen[:, 0]) == {1.0, 1.1}
    assert set(seen[:, 1]) == {0.9, 1.0}
    assert set(seen[:, 2]) == {0.9, 1.0}
    assert set(seen[:, 3]) == set(FACTORS)


def test_limits_hold_for_speed_and_tempo_together():
    """Ten frames a second hold the eight labels in 0.8 s: at 1.25 and at 1.1, but not at both."""
    limits = Limits(ctc_frames=lambda samples: samples // 1600)
    rows = utterances(1.0, text="abababab")
    speeds = perturbation(rows, limits, tokenizer=Spelling(), speeds=[1.0, 1.1], tempos=[1.0, 1.25])
    seen = {tuple(speeds.draw(epoch)[0].tolist()) for epoch in range(100)}
    assert seen == {(1.0, 1.0), (1.1, 1.0), (1.0, 1.25)}


def test_limits_hold_for_each_reference():
    """Ten frames a second hold two labels at both tempos, and eight in 0.8 s at least."""
    limits = Limits(ctc_frames=lambda samples: samples // 1600)
    rows = [replace(utterances(1.0)[0], references=("abababab",))]
    drawn = perturbation(rows, limits, tokenizer=Spelling(), speeds=[], tempos=[1.0, 2.0])
    assert {drawn.draw(epoch)[0, 1] for epoch in range(50)} == {1.0}


def test_utterance_keeps_its_speed_if_no_factor_is_within_limits():
    rows = utterances(20.0, 4.0)
    assert perturbation(rows, Limits(max_s=30.0), speeds=[0.5]).draw(0).tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert perturbation(rows, Limits(max_s=30.0), speeds=[], tempos=[0.5]).draw(0).tolist() == [[1.0, 1.0], [1.0, 0.5]]


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_audio_equals_torchaudio_speed(tmp_path, rate, factor):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32), rate)
    row = Utterance(id="a", audio_filepath=str(tmp_path / "a.wav"), duration=1.0)
    plain, changed = read_waveform(row), read_waveform(row, speed=factor)
    expected, _ = torchaudio.functional.speed(plain, 16000, factor)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-6)
    assert len(changed) == pytest.approx(16000 / factor, abs=2)


def test_offset_and_duration_apply_before_speed(tmp_path):
    tone = np.sin(2 * np.pi * 400 * np.arange(32000) / 16000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([tone, 0 * tone]), 16000)
    row = Utterance(id="a", audio_filepath=str(tmp_path / "a.wav"), duration=2.0)
    fast = read_waveform(replace(row), speed=1.25)
    peak = int(torch.fft.rfft(fast).abs().argmax()) * 16000 / len(fast)
    assert len(fast) == 25600
    assert peak == pytest.approx(500, abs=1)


def peak_hz(waveform):
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform)), 1 << 18).abs()
    return int(spectrum.argmax()) * 16000 / (1 << 18)


@pytest.mark.parametrize("tempo", [0.5, 0.8, 0.9, 1.1, 1.25, 2.0])
def test_tempo_keeps_the_pitch_and_the_level(tempo):
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(32000) / 16000)
    changed = stretched(tone, tempo)
    assert len(changed) == round(32000 / tempo)
    assert peak_hz(changed) == pytest.approx(440, abs=1)
    assert peak_hz(resampled := torchaudio.functional.speed(tone, 16000, tempo)[0]) == pytest.approx(440 * tempo, abs=1)
    assert len(resampled) == pytest.approx(len(changed), abs=1)
    assert float(changed.square().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(changed[-800:].square().mean()) > 0.3, "the end is not cut off"


def test_tempo_keeps_the_order_and_the_places_of_sounds():
    quiet, tones = torch.zeros(8000), [torch.sin(2 * torch.pi * hz * torch.arange(8000) / 16000) for hz in (300, 900)]
    changed = stretched(torch.cat([tones[0], quiet, tones[1], quiet]), 1.25)
    assert len(changed) == 25600
    assert peak_hz(changed[400:6000]) == pytest.approx(300, abs=2)
    assert peak_hz(changed[13300:18800]) == pytest.approx(900, abs=2)
    assert float(changed[7400:12000].abs().max()) < 0.01


@settings(max_examples=60, deadline=None)
@example(1, 1.0, 2.0)
@given(st.integers(1, 40_000), st.floats(0.5, 2), st.floats(0.5, 2))
def test_lengths_are_those_that_batches_are_planned_with(samples, speed, tempo):
    waveform = torch.sin(torch.arange(samples) / 20.0)
    faster = resample(waveform, round(speed * 16000))
    changed = stretched(faster, tempo)
    assert changed_lengths(np.array([samples]), np.array([[speed, tempo]])).tolist() == [len(changed)]
    assert changed.dtype == torch.float32
    assert torch.isfinite(changed).all()
    assert torch.equal(changed, stretched(faster, tempo))


def test_batches_with_tempo_are_equal_for_any_number_of_workers(config):
    config = replace(config, speed_factors=[0.9, 1.0, 1.1], tempo_factors=[0.8, 1.0, 1.25], max_batch_s=3.0)

    def batches(epoch, workers, start=0):
        data = data_of(replace(config, num_workers=workers), epoch=epoch)
        loader = data.train_dataloader()
        loader.load_state_dict({"epoch": epoch, "batches": start})
        return list(loader), data.train_sampler(epoch)

    own, sampler = batches(1, 0)
    for workers, start in ((4, 0), (0, 1)):
        others, _ = batches(1, workers, start)
        assert len(others) == len(own) - start
        for one, other in zip(own[start:], others, strict=True):
            assert torch.equal(one.waveform_BT, other.waveform_BT)
            assert [u.id for u in one.utterances] == [u.id for u in other.utterances]
    for batch, indices in zip(own, sampler.batches, strict=True):
        assert (batch.lengths_B.numpy() == np.round(sampler.durations_N[indices] * 16000)).all(), "promised and got"
        assert len(batch.utterances) == 1 or batch.waveform_BT.numel() <= 3.0 * 16000
    lengths = {epoch: sorted(int(n) for b in batches(epoch, 0)[0] for n in b.lengths_B) for epoch in (0, 1)}
    assert lengths[0] != lengths[1]


def test_speed_changes_by_epoch_in_training_and_never_in_evaluation(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    run = build(tmp_path, *overrides, "data.speed_factors=[0.5,2.0]", "data.max_batch_s=4.0", "trainer.max_epochs=2")
    seen, plain = [], run.module.loss

    def loss(batch, out=None):
        lengths = {
            u.id: (u.duration, n / 16000) for u, n in zip(batch.utterances, batch.lengths_B.tolist(), strict=True)
        }
        seen.append((run.module.training, run.trainer.current_epoch, batch.waveform_BT.numel() / 16000, lengths))
        return plain(batch, out)

    run.module.loss = loss
    run.trainer.fit(run.module, datamodule=run.data)
    ratios = {0: {}, 1: {}}
    for training, epoch, cost_s, lengths in seen:
        for name, (manifest_s, read_s) in lengths.items():
            if training:
                ratios[epoch][name] = round(manifest_s / read_s, 2)
            else:
                assert read_s == pytest.approx(manifest_s, abs=1e-3)
        if training and len(lengths) > 1:
            assert cost_s <= 4.0 + 1e-3, "the budget counts the perturbed audio"
    assert set(ratios[0].values()) | set(ratios[1].values()) <= {0.5, 1.0, 2.0}
    assert {0.5, 2.0} <= set(ratios[0].values())
    assert ratios[0] != ratios[1]
    assert sum(map(len, ratios.values())) == 2 * len(run.data.selections["train"].kept)
