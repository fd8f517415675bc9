"""The estimated memory of a step, against live tensors, tensors kept for the backward pass, and allocations."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from ssl_asr.build import trial
from ssl_asr.build.budget import Planned
from ssl_asr.build.plan import MemoryEstimate, step_memory
from ssl_asr.training.probing import probing, silent_batch
from ssl_asr.training.step_memory import Shape, _LikeCuda, step_timeline
from tests.training.test_flops import overrides_of
from tests.training.toy_runs import build

BF16 = "trainer.precision=bf16-mixed"
RECOMPUTED = "backbone.gradient_checkpointing=true"


def largest_batch(run):
    """The audio and the texts of the batch that computes most."""
    sampler = run.data.train_sampler(0)
    return run.data.train_batch(max(sampler.batches, key=sampler.cost_s))


def batch_of(run, shape):
    """The audio and the texts of a planned batch."""
    planned = Planned.of(run.data)
    return run.data.train_batch(planned.sampler.batches[planned.shapes.index(shape)])


def saved(run, batch):
    """Bytes of a batch and of what autograd saves in a forward pass over it."""
    with probing(run.module), trial.saved_bytes(run.module) as sizes:
        run.module.train()
        with run.trainer.precision_plugin.forward_context():
            loss = run.module.loss(batch).total
    assert loss.requires_grad
    return sum(sizes.values()) + batch.waveform_BT.numel() * 4


def allocated(run, batch):
    """Peak of what torch allocates in an update, which is not the first one."""
    optimizers = trial._optimizers(run)
    run.module.train()
    trial._update(run, batch, optimizers)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trial._update(run, batch, optimizers)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize(
    ("name", "task", "more"),
    [
        ("whisper", "seq2seq", ["freeze=false"]),
        ("whisper", "seq2seq", ["freeze_policy=lora"]),
        ("wav2vec2_group", "ctc", ["freeze=false"]),
        ("wav2vec2_group", "ctc", ["freeze=true"]),
        pytest.param("wavlm_layer", "ctc", ["freeze=false", BF16], marks=pytest.mark.slow),
        pytest.param("wav2vec2_layer", "joint", ["freeze=false", "head=attention_gru"], marks=pytest.mark.slow),
        pytest.param("whisper", "seq2seq", ["freeze=false", RECOMPUTED, BF16], marks=pytest.mark.slow),
        pytest.param("w2v_bert", "ctc", ["freeze=false"], marks=pytest.mark.slow),
        pytest.param("parakeet", "ctc", ["freeze=false"], marks=pytest.mark.slow),
    ],
)
def test_estimate_of_batches_that_were_not_measured(toy_checkpoints, toy_corpus, tmp_path, name, task, more):
    tail = ["backbone.train_tail_s=[1.5,1.5]"] if name == "whisper" else []
    run = build(tmp_path, *overrides_of(name, toy_checkpoints, toy_corpus, task), *more, *tail)
    module, context = run.module, run.trainer.precision_plugin.forward_context
    memory = step_memory(run)
    longest_s = float(run.data.train_kept.durations_N.max())
    many = silent_batch(module, run.data.train_kept[0], [longest_s, *[longest_s / 3] * 9], [20, *[7] * 9])
    for batch in (largest_batch(run), many):
        timeline, end = step_timeline(module, batch, context)
        [kept], [peak] = memory.of([Shape.of(module, batch)])
        assert kept == pytest.approx(timeline[end], rel=0.15)
        assert peak == pytest.approx(max(timeline), rel=0.15)
        if RECOMPUTED not in more:
            assert timeline[end] == pytest.approx(saved(run, batch), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["freeze=false"], ["freeze_policy=lora"], ["freeze=true"], ["freeze=true", "task=ctc"]], ids=" ".join
)
def test_estimate_of_real_weights_is_what_an_update_allocates(data_root, whisper_tiny_en, tmp_path, more):
    """Whisper tiny.en on AN4: all of it, LoRA, its decoder, and a CTC head on its frozen encoder."""
    tail = [] if "task=ctc" in more else ["backbone.train_tail_s=[1.5,1.5]"]
    data = [f"data.train={data_root}/en_an4/train.jsonl", "data.max_leakage=1", "data.num_workers=0"]
    backbone = ["backbone=whisper_tiny_en", f"backbone.source={whisper_tiny_en}", "trainer.accelerator=cpu"]
    run = build(tmp_path, *backbone, *data, *more, *tail)
    estimate = MemoryEstimate.of(run, step_memory(run), 1)
    with warnings.catch_warnings(action="ignore"):
        measured = estimate.parameters + estimate.optimizer + allocated(run, batch_of(run, estimate.largest))
    assert estimate.peak == pytest.approx(measured, rel=0.15)


def test_toy_update_allocates_what_is_estimated(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *overrides_of("wav2vec2_group", toy_checkpoints, toy_corpus, "ctc"), "freeze=false")
    estimate = MemoryEstimate.of(run, step_memory(run), 1)
    with warnings.catch_warnings(action="ignore"):
        measured = estimate.parameters + estimate.optimizer + allocated(run, batch_of(run, estimate.largest))
    assert estimate.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_results_that_are_not_computed_have_the_same_sizes(toy_checkpoints, toy_corpus, tmp_path, precision):
    overrides = overrides_of("whisper", toy_checkpoints, toy_corpus, "seq2seq")
    run = build(tmp_path, *overrides, "freeze=false", f"trainer.precision={precision}")
    context, batch = run.trainer.precision_plugin.forward_context, largest_batch(run)
    fast, slow = (step_timeline(run.module, batch, context, computes=computes) for computes in (False, True))
    assert fast == slow


def test_a_step_leaves_no_trace(toy_checkpoints, toy_corpus, tmp_path):
    """Batch norms have buffers, and dropout draws."""
    run = build(tmp_path, *overrides_of("parakeet", toy_checkpoints, toy_corpus, "ctc"), "freeze=false")
    module = run.module.eval()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(torch.OutOfMemoryError, match=r"more than the 1,000 bytes that are allowed"):
        step_timeline(module, largest_batch(run), run.trainer.precision_plugin.forward_context, limit=1000)
    step_timeline(module, largest_batch(run), run.trainer.precision_plugin.forward_context)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in module.parameters() if p.requires_grad)
    assert not module.training
    assert "log_train" not in vars(module)


def test_kernels_of_cuda_keep_less_for_dropout_and_no_attention_matrix():
    """Sizes from the kernels: a mask of one byte, and queries, keys, values, outputs and a normalizer of each query."""
    x, q = torch.randn(10, 100, requires_grad=True), torch.randn(1, 2, 50, 8, requires_grad=True)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with _LikeCuda():
            functional.dropout(x, 0.5, training=True)
            dropped, sizes[:] = [*sizes], []
            functional.scaled_dot_product_attention(q, q, q, dropout_p=0.1)
            attended, sizes[:] = [*sizes], []
        functional.scaled_dot_product_attention(q, q, q, dropout_p=0.1)
    assert dropped == [1000]
    assert max(attended) == q.numel() * 4
    assert max(sizes) >= 2 * 50 * 50 * 4


def test_autocast_of_cuda_normalizes_in_float32():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.layer_norm(x, (8,)).dtype == torch.bfloat16
        with _LikeCuda():
            assert functional.layer_norm(x, (8,)).dtype == torch.float32
            assert torch.nn.LayerNorm(8)(x).dtype == torch.float32
