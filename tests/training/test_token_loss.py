"""Cross-entropy in chunks against torch's, and what it keeps for backward."""

import pytest
import torch
from torch.nn import functional

from ssl_asr.training import token_loss
from ssl_asr.training.token_loss import token_losses

TOKENS, DIM, VOCABULARY = 11, 6, 23


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    states_ND = torch.randn(TOKENS, DIM, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(VOCABULARY, DIM, dtype=dtype, requires_grad=True)
    return states_ND, weight_VD, torch.randint(VOCABULARY, (TOKENS,))


def by_torch(states_ND, weight_VD, targets_N, smoothing):
    return functional.cross_entropy(states_ND @ weight_VD.T, targets_N, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("rows", [1, 4, TOKENS - 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_equal_torch(monkeypatch, rows, smoothing):
    monkeypatch.setattr(token_loss, "_MAX_LOGITS", rows * VOCABULARY)
    states_ND, weight_VD, targets_N = inputs()
    ours = token_losses(states_ND, weight_VD, targets_N, smoothing=smoothing)
    theirs = by_torch(states_ND, weight_VD, targets_N, smoothing)
    torch.testing.assert_close(ours, theirs)
    factors = torch.rand(TOKENS, dtype=torch.float64)
    gradients = (torch.autograd.grad((one * factors).sum(), (states_ND, weight_VD)) for one in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_output_layer_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(token_loss, "_MAX_LOGITS", VOCABULARY)
    states_ND, weight_VD, targets_N = inputs()
    weight_VD.requires_grad_(False)
    token_losses(states_ND, weight_VD, targets_N, smoothing=0.1).sum().backward()
    expected = inputs()[0]
    by_torch(expected, weight_VD, targets_N, 0.1).sum().backward()
    torch.testing.assert_close(states_ND.grad, expected.grad)
    assert weight_VD.grad is None


def test_autocast_computes_products_in_16_bits_and_the_loss_in_32(monkeypatch):
    results = []
    for rows in (1, TOKENS):
        monkeypatch.setattr(token_loss, "_MAX_LOGITS", rows * VOCABULARY)
        states_ND, weight_VD, targets_N = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss_N = token_losses(states_ND, weight_VD, targets_N, smoothing=0.0)
        assert loss_N.dtype == torch.float32
        loss_N.sum().backward()
        assert states_ND.grad.dtype == weight_VD.grad.dtype == torch.float32
        results.append((loss_N, states_ND.grad, weight_VD.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_no_logits_are_kept_for_backward(monkeypatch):
    monkeypatch.setattr(token_loss, "_MAX_LOGITS", 2 * VOCABULARY)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        token_losses(*inputs(), smoothing=0.1)
    assert sum(kept) == TOKENS * DIM + VOCABULARY * DIM + TOKENS + TOKENS
