"""Speed perturbation: draws, limits, audio, and its use in training only."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.filters import Limits
from ssl_asr.data.speed import SpeedPerturbation
from ssl_asr.types import Utterance
from tests.training.toy_runs import build, toy_overrides

FACTORS = [0.9, 1.0, 1.1]


@dataclass
class Spelling:
    def encode(self, utterance):
        return list(utterance.text)


def utterances(*durations, text="ab"):
    return [Utterance(id=str(i), audio_filepath="a.wav", duration=d, text=text) for i, d in enumerate(durations)]


def perturbation(rows, limits=None, seed=0, tokenizer=None):
    return SpeedPerturbation(FACTORS, rows, limits or Limits(), tokenizer=tokenizer, seed=seed)


def test_factors_are_uniform_differ_by_epoch_and_are_reproducible():
    speeds = perturbation(utterances(*[2.0] * 3000))
    first, second = speeds.draw(0), speeds.draw(1)
    assert (first == perturbation(utterances(*[2.0] * 3000)).draw(0)).all()
    assert (first != second).mean() == pytest.approx(2 / 3, abs=0.05)
    for factor in FACTORS:
        assert (first == factor).mean() == pytest.approx(1 / 3, abs=0.04)
    assert (first != perturbation(utterances(*[2.0] * 3000), seed=1).draw(0)).any()


def test_factor_outside_limits_is_never_drawn():
    # 28 s / 0.9 is over 30 s; 1.05 s / 1.1 is under 1 s; 20 frames a second hold "abababab" in 0.4 s, not less.
    limits = Limits(min_s=1.0, max_s=30.0, ctc_frames=lambda samples: samples // 800)
    rows = [*utterances(28.0, 1.05), *utterances(1.2, text="ab" * 12), *utterances(10.0)]
    speeds = perturbation(rows, limits, tokenizer=Spelling())
    seen = np.array([speeds.draw(epoch) for epoch in range(200)])
    assert set(seen[:, 0]) == {1.0, 1.1}
    assert set(seen[:, 1]) == {0.9, 1.0}
    assert set(seen[:, 2]) == {0.9, 1.0}
    assert set(seen[:, 3]) == set(FACTORS)


def test_utterance_keeps_its_speed_if_no_factor_is_within_limits():
    speeds = SpeedPerturbation([0.5], utterances(20.0, 4.0), Limits(max_s=30.0), tokenizer=None, seed=0)
    assert speeds.draw(0).tolist() == [1.0, 0.5]


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
