"""Counts of floating-point operations, against torch's counter; and the peaks of cards."""

import pytest
import torch

from ssl_asr.data.dataset import silence
from ssl_asr.training.flops import TrainingFlops, batch_lengths, count_flops, peak_flops
from tests.toys import FAMILIES
from tests.training.toy_runs import build, toy_overrides

# The layers of data2vec are wav2vec 2.0's.
SLOW = [name for name in FAMILIES if not name.endswith("_group") and name not in ("data2vec", "parakeet")]


def overrides_of(name, checkpoints, corpus, task):
    backbone = {"whisper": "whisper_tiny_en", "w2v_bert": "w2v_bert_2", "parakeet": "parakeet_ctc_0_6b"}
    given = toy_overrides(checkpoints[name], corpus, task)
    given[0] = f"backbone={backbone.get(name, 'wav2vec2_base')}"
    return given


@pytest.mark.parametrize(
    ("name", "task", "freeze"),
    [
        ("whisper", "seq2seq", "freeze=false"),
        ("whisper", "seq2seq", "freeze=true"),
        ("parakeet", "ctc", "freeze=false"),
        *(pytest.param(name, "ctc", "freeze=false", marks=pytest.mark.slow) for name in SLOW),
        pytest.param("wav2vec2_layer", "joint", "freeze=false", marks=pytest.mark.slow),
    ],
)
def test_operations_of_utterances_are_those_that_torch_counts(
    toy_checkpoints, toy_corpus, tmp_path, name, task, freeze
):
    """Each utterance alone, of lengths that were not counted before."""
    run = build(tmp_path, *overrides_of(name, toy_checkpoints, toy_corpus, task), freeze)
    run.module.trainer = run.trainer
    before = torch.get_rng_state()
    flops = TrainingFlops(run.module, run.data.train_kept[0])
    assert torch.equal(torch.get_rng_state(), before), "a resumed run equals the uninterrupted run"
    assert all(parameter.grad is None for parameter in run.module.parameters())
    for index, seconds in ((1, 0.9), (2, 4.4), (3, 9.9)):
        utterance = run.data.train_kept[index]
        object.__setattr__(utterance, "duration", seconds)
        batch = silence(utterance, run.module.tokenizer)
        assert flops.of(*batch_lengths(batch)) == pytest.approx(count_flops(run.module, batch), rel=0.03)


def test_frozen_encoder_costs_less(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    whole, frozen = (
        TrainingFlops(run.module, run.data.train_kept[0]).of([5.0], [10])
        for run in (build(tmp_path, *overrides, f"freeze={value}") for value in ("false", "true"))
    )
    # Forward, and twice as much backward, but for the gradient of the waveform.
    assert 0.3 < frozen / whole < 0.5


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", False, 989.4),
        ("NVIDIA H100 PCIe", "16-mixed", False, 756.0),
        ("NVIDIA A100-SXM4-80GB", "32-true", True, 156.0),
        ("NVIDIA A100-SXM4-80GB", "32-true", False, 19.5),
        ("NVIDIA L40S", "bf16-mixed", False, 362.0),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", False, 165.2),
    ],
)
def test_peak_of_a_card(device, precision, tf32, tera):
    assert peak_flops(device, precision, tf32=tf32) == tera * 1e12


def test_unknown_card_has_no_peak():
    assert peak_flops("Some Card", "bf16-mixed", tf32=False) is None
