"""Attention with WavLM's gated relative position bias (Chen et al., 2022, arXiv:2110.13900), in little memory.

For one head, with queries ``i`` and keys ``j`` of one utterance:

    s_ij = q_i k_j / sqrt(d) + g_i r_{j-i}        g_i: gate of the query, r: learned bias of the distance
    p_ij = softmax over j of s_ij
    o_i  = sum over j of m_ij p_ij v_j            m_ij = 0 or 1 / (1 - dropout)

A table of one number per pair of frames, head and layer is far larger than the states themselves. So the forward pass
keeps only its inputs, and the backward pass computes the tables again, a few utterances at a time. On GPUs, Triton
kernels compute the same without tables, see `ssl_asr.models.relative_kernel`. The gradients are:

    dv_j = sum_i m_ij p_ij do_i         da_ij = m_ij do_i v_j
    ds_ij = p_ij (da_ij - do_i o_i)     do_i o_i = sum_j p_ij da_ij
    dq_i = sum_j ds_ij k_j / sqrt(d)    dk_j = sum_i ds_ij q_i / sqrt(d)
    dg_i = sum_j ds_ij r_{j-i}          dr_n = sum_i ds_{i,i+n} g_i
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from ssl_asr.models.encoder import is_traced

_MAX_TABLE = 1 << 24
"""Largest number of pairs of frames and heads in one table on a CPU. A GPU takes more, for fewer launches."""
_ON_GPU = 4


def relative_attention(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    gate_BHT: Tensor,
    relative_HR: Tensor,
    *,
    mask_BT: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each utterance to itself, with a bias that depends on the distance and the query.

    Args:
        q_BHTD, k_BHTD, v_BHTD: Tensors of shape (batch, heads, frames, features).
        gate_BHT: Tensor of shape (batch, heads, frames), factor of the bias for each query.
        relative_HR: Tensor of shape (heads, 2 * frames - 1), bias of the distances ``1 - frames`` to ``frames - 1``.
        mask_BT: bool, False at padding; None if there is none.
        dropout: float, probability with which an attention weight is set to zero.

    Returns:
        Tensor of the shape and type of ``v_BHTD``.
    """
    inputs = (q_BHTD, k_BHTD, v_BHTD, gate_BHT, relative_HR)
    if dropout > 0 or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        out_BHTD: Tensor = _RelativeAttention.apply(*inputs, mask_BT, dropout)  # type: ignore[no-untyped-call]
        return out_BHTD
    return _without_dropout(*inputs, mask_BT)


def spread(relative_HR: Tensor, frames: int) -> Tensor:
    """The bias of each pair of frames: ``bias_HTT[h, i, j] = relative_HR[h, frames - 1 + j - i]``."""
    places_T = torch.arange(frames, device=relative_HR.device)
    return relative_HR[:, frames - 1 + places_T - places_T[:, None]]


def shortened(relative_HR: Tensor, frames: int) -> Tensor:
    """The bias of the distances in an utterance of this number of frames, shape (heads, 2 * frames - 1)."""
    middle = relative_HR.shape[1] // 2
    return relative_HR[:, middle - frames + 1 : middle + frames]


def gather_distances(table_HTT: Tensor) -> Tensor:
    """Sums over the pairs of frames with the same distance: the transpose of `spread`.

    Row ``i`` of the flipped table, in rows of 2T, is moved by one column against row ``i + 1`` in rows of 2T - 1::

        a b c 0 0 0             a b c 0 0
        d e f 0 0 0     ->      0 d e f 0
        g h i 0 0 0             0 0 g h i
    """
    heads, frames, _ = table_HTT.shape
    wide = functional.pad(table_HTT.flip(1), (0, frames)).flatten(1)[:, : frames * (2 * frames - 1)]
    return wide.view(heads, frames, 2 * frames - 1).sum(1)


def _without_dropout(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, gate_BHT: Tensor, relative_HR: Tensor, mask_BT: Tensor | None
) -> Tensor:
    bias_HTT = spread(relative_HR, q_BHTD.shape[2])
    parts = []
    for part in _parts(q_BHTD):
        bias = (gate_BHT[part, ..., None] * bias_HTT).to(q_BHTD.dtype)
        if mask_BT is not None:
            bias = bias.masked_fill(~mask_BT[part, None, None], -torch.inf)
        parts.append(functional.scaled_dot_product_attention(q_BHTD[part], k_BHTD[part], v_BHTD[part], attn_mask=bias))
    return torch.cat(parts)


def _parts(q_BHTD: Tensor) -> Iterator[slice]:
    """Utterances whose tables fit into memory together."""
    # One part while a graph is traced, because its number would depend on the batch.
    if is_traced():
        yield slice(None)
        return
    batch, heads, frames, _ = q_BHTD.shape
    largest = _MAX_TABLE * (_ON_GPU if q_BHTD.is_cuda else 1)
    size = max(1, largest // (heads * frames * frames))
    yield from (slice(start, start + size) for start in range(0, batch, size))


class _RelativeAttention(Function):
    """`relative_attention` that computes its tables again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, gate, relative, mask, dropout = inputs
        ctx.dropout = dropout
        # The seed is drawn on the CPU, so that nothing waits for the device.
        ctx.seed = int(torch.randint(1 << 62, (1,))) if dropout > 0 else 0
        if dropout == 0:
            out: Tensor = _without_dropout(q, k, v, gate, relative, mask)
        else:
            bias, generator = spread(relative, q.shape[2]), _generator(ctx.seed, q.device)
            parts = []
            for part in _parts(q):
                weights = attention_weights(q[part], k[part], gate[part], bias, None if mask is None else mask[part])
                weights *= _kept(weights, dropout, generator)
                parts.append(weights.to(v.dtype) @ v[part])
            out = torch.cat(parts)
        ctx.save_for_backward(q, k, v, gate, relative, mask, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [d_out] = gradients
        q, k, v, gate, relative, mask, out = ctx.saved_tensors
        scale, frames = 1 / math.sqrt(q.shape[-1]), q.shape[2]
        bias, generator = spread(relative, frames), _generator(ctx.seed, q.device)
        d_q, d_k, d_v, d_gate = (torch.empty_like(x) for x in (q, k, v, gate))
        d_bias = torch.zeros_like(bias, dtype=torch.promote_types(torch.float32, bias.dtype))
        for part in _parts(q):
            weights = attention_weights(q[part], k[part], gate[part], bias, None if mask is None else mask[part])
            d_scores = (d_out[part] @ v[part].transpose(2, 3)).to(weights.dtype)
            dropped = weights
            if ctx.dropout > 0:
                kept = _kept(weights, ctx.dropout, generator)
                d_scores *= kept
                dropped = weights * kept
            d_v[part] = dropped.to(d_out.dtype).transpose(2, 3) @ d_out[part]
            d_scores -= (d_out[part] * out[part]).to(weights.dtype).sum(-1, keepdim=True)
            d_scores *= weights
            d_gate[part] = (d_scores * bias).sum(-1)
            d_bias += torch.einsum("bhij,bhi->hij", d_scores, gate[part].to(d_scores.dtype))
            d_scores = d_scores.to(q.dtype)
            d_q[part] = d_scores @ k[part] * scale
            d_k[part] = d_scores.transpose(2, 3) @ q[part] * scale
        return d_q, d_k, d_v, d_gate, gather_distances(d_bias).to(relative.dtype), None, None


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _kept(weights: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """The factor of each weight: 0, or ``1 / (1 - dropout)``."""
    keeps = torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator)
    return keeps.div_(1 - dropout)


def attention_weights(q: Tensor, k: Tensor, gate: Tensor, bias_HTT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Attention weights before dropout, in float32 at least."""
    scores = q @ k.transpose(2, 3)
    scores = scores.to(torch.promote_types(torch.float32, scores.dtype))
    scores = torch.addcmul(scores / math.sqrt(q.shape[-1]), gate[..., None].to(scores.dtype), bias_HTT.to(scores.dtype))
    if mask_BT is not None:
        scores = scores.masked_fill(~mask_BT[:, None, None], -torch.inf)
    return scores.softmax(-1)
