"""Cross-entropy of tokens from states, without logits of all tokens in memory.

For a token with state ``h``, target ``y`` and the output layer ``W`` of ``V`` rows, with label smoothing ``e``:

    z = W h          L = logsumexp(z)          loss = L - (1 - e) z_y - e mean(z)
    dz = d (exp(z - L) - (1 - e) onehot(y) - e / V)          d: gradient of the loss
    dh = dz W        dW = sum over tokens of dz^T h

A vocabulary of 51,866 takes 200 kB for each token in float32, and autograd keeps that twice. So tokens are computed in
chunks: the forward pass keeps ``L``, and the backward pass computes ``z`` again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from ssl_asr.models.transformer import compute_type, linear

_MAX_LOGITS = 1 << 25
"""Largest number of logits in one chunk: 128 MB in float32."""


def token_losses(states_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy of each token, ``loss_N`` in float32.

    Args:
        states_ND: Tensor of shape (tokens, features).
        weight_VD: Tensor of shape (vocabulary, features), output layer.
        targets_N: int64 tensor of shape (tokens,).
        smoothing: float in [0, 1), share of the target's probability that is spread over the vocabulary.
    """
    if len(states_ND) * len(weight_VD) <= _MAX_LOGITS:
        logits_NV = linear(states_ND, weight_VD).float()
        return functional.cross_entropy(logits_NV, targets_N, reduction="none", label_smoothing=smoothing)
    loss_N: Tensor = _TokenLosses.apply(states_ND, weight_VD, targets_N, smoothing)  # type: ignore[no-untyped-call]
    return loss_N


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _MAX_LOGITS // vocabulary)
    yield from (slice(start, start + size) for start in range(0, tokens, size))


class _TokenLosses(Function):
    """`token_losses` in chunks."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        states_ND, weight_VD, targets_N, smoothing = inputs
        dtype = compute_type(states_ND, weight_VD)
        weight = weight_VD.to(dtype)
        losses, totals = [], []
        for chunk in _chunks(len(states_ND), len(weight)):
            logits_NV = _logits(states_ND[chunk].to(dtype), weight)
            total_N = logits_NV.logsumexp(-1)
            target_N = logits_NV.gather(1, targets_N[chunk, None])[:, 0]
            losses.append(total_N - (1 - smoothing) * target_N - smoothing * logits_NV.mean(-1))
            totals.append(total_N)
        ctx.smoothing, ctx.dtype = smoothing, dtype
        ctx.save_for_backward(states_ND, weight_VD, targets_N, torch.cat(totals))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [d_loss_N] = gradients
        states_ND, weight_VD, targets_N, total_N = ctx.saved_tensors
        weight, trains = weight_VD.to(ctx.dtype), ctx.needs_input_grad[1]
        d_states_ND = torch.empty_like(states_ND)
        d_weight_VD = torch.zeros_like(weight_VD) if trains else None
        for chunk in _chunks(len(states_ND), len(weight)):
            states, d_loss_N1 = states_ND[chunk].to(ctx.dtype), d_loss_N[chunk, None]
            d_logits_NV = _logits(states, weight).sub_(total_N[chunk, None]).exp_()
            d_logits_NV -= ctx.smoothing / len(weight)
            targets_N1 = targets_N[chunk, None]
            d_logits_NV.scatter_add_(1, targets_N1, torch.full_like(d_loss_N1, ctx.smoothing - 1))
            d_logits = (d_logits_NV * d_loss_N1).to(ctx.dtype)
            d_states_ND[chunk] = (d_logits @ weight).to(states_ND.dtype)
            if d_weight_VD is not None:
                d_weight_VD += d_logits.T @ states
        return d_states_ND, d_weight_VD, None, None


def _logits(states_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits in float32 at least."""
    with torch.autocast(states_ND.device.type, enabled=False):
        logits_NV = states_ND @ weight_VD.T
    return logits_NV.to(torch.promote_types(torch.float32, logits_NV.dtype))
