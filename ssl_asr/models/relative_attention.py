"""Attention with a bias for the distance between frames, in little memory.

For one head, with queries ``i`` and keys ``j`` of one utterance:

    s_ij = q_i k_j / sqrt(d) + b_ij
    p_ij = softmax over j of s_ij
    o_i  = sum over j of m_ij p_ij v_j            m_ij = 0 or 1 / (1 - dropout)

    b_ij = g_i r_{j-i}                  WavLM (Chen et al., 2022, arXiv:2110.13900)
                                        g_i: gate of the query, r: learned bias of the distance
    b_ij = c_{i, min(max(j-i, -l), r)}  relative keys (Shaw et al., 2018, arXiv:1803.02155)
                                        c_i: scores of the query with a vector of each distance from -l to r

A table of one number per pair of frames, head and layer is far larger than the states themselves. So the forward pass
keeps only its inputs, and the backward pass computes the tables again, a few utterances at a time. On GPUs, Triton
kernels compute the same without tables, see `ssl_asr.models.relative_kernel`. The gradients are:

    dv_j = sum_i m_ij p_ij do_i         da_ij = m_ij do_i v_j
    ds_ij = p_ij (da_ij - do_i o_i)     do_i o_i = sum_j p_ij da_ij
    dq_i = sum_j ds_ij k_j / sqrt(d)    dk_j = sum_i ds_ij q_i / sqrt(d)

    dg_i = sum_j ds_ij r_{j-i}          dr_n = sum_i ds_{i,i+n} g_i
    dc_in = ds_{i,i+n}                  and the sum over all j beyond for n = -l and n = r
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

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
    """Attention of each utterance to itself, with a bias that depends on the distance and on a gate of the query.

    Args:
        q_BHTD, k_BHTD, v_BHTD: Tensors of shape (batch, heads, frames, features).
        gate_BHT: Tensor of shape (batch, heads, frames), factor of the bias for each query.
        relative_HR: Tensor of shape (heads, 2 * frames - 1), bias of the distances ``1 - frames`` to ``frames - 1``.
        mask_BT: bool, False at padding; None if there is none.
        dropout: float, probability with which an attention weight is set to zero.

    Returns:
        Tensor of the shape and type of ``v_BHTD``.
    """
    states = (q_BHTD, k_BHTD, v_BHTD)
    return _attention(_Gated, states, (gate_BHT, relative_HR), mask_BT=mask_BT, dropout=dropout)


def distance_attention(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    scores_BHTR: Tensor,
    left: int,
    right: int,
    *,
    mask_BT: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each utterance to itself, with a bias that the query gives to each distance.

    Args:
        q_BHTD, k_BHTD, v_BHTD: Tensors of shape (batch, heads, frames, features).
        scores_BHTR: Tensor of shape (batch, heads, frames, left + 1 + right), bias of each distance from ``-left``, for
            keys before the query, to ``right``. Keys beyond have the bias of the farthest distance on their side.
        left, right: int, largest distances.
        mask_BT, dropout: See `relative_attention`.

    Returns:
        Tensor of the shape and type of ``v_BHTD``.
    """
    bias = partial(_Distances, left, right)
    return _attention(bias, (q_BHTD, k_BHTD, v_BHTD), (scores_BHTR,), mask_BT=mask_BT, dropout=dropout)


class _Bias(Protocol):
    """The bias of pairs of frames, and its gradients. Made from the tensors that it depends on."""

    def table(self, part: slice) -> Tensor:
        """The bias of some utterances, which broadcasts to (utterances, heads, frames, frames)."""

    def collect(self, d_scores: Tensor, part: slice) -> None:
        """Adds the gradients of some utterances. Called for one part after the other."""

    def gradients(self) -> tuple[Tensor, ...]:
        """The gradient of each tensor."""


class _Gated:
    """``g_i r_{j-i}``. See `relative_attention`."""

    def __init__(self, gate_BHT: Tensor, relative_HR: Tensor) -> None:
        self._gate_BHT, self._relative_HR = gate_BHT, relative_HR
        self._bias_HTT = spread(relative_HR, gate_BHT.shape[2])
        self._d_gates: list[Tensor] = []
        self._d_bias_HTT: Tensor | None = None

    def table(self, part: slice) -> Tensor:
        return self._gate_BHT[part, ..., None] * self._bias_HTT

    def collect(self, d_scores: Tensor, part: slice) -> None:
        self._d_gates.append((d_scores * self._bias_HTT).sum(-1))
        d_bias_HTT = torch.einsum("bhij,bhi->hij", d_scores, self._gate_BHT[part].to(d_scores.dtype))
        self._d_bias_HTT = d_bias_HTT if self._d_bias_HTT is None else self._d_bias_HTT + d_bias_HTT

    def gradients(self) -> tuple[Tensor, ...]:
        assert self._d_bias_HTT is not None
        d_relative_HR = gather_distances(self._d_bias_HTT).to(self._relative_HR.dtype)
        return torch.cat(self._d_gates).to(self._gate_BHT.dtype), d_relative_HR


class _Distances:
    """``c_{i, min(max(j-i, -l), r)}``. See `distance_attention`."""

    def __init__(self, left: int, right: int, scores_BHTR: Tensor) -> None:
        self._left, self._right, self._scores_BHTR = left, right, scores_BHTR
        self._gradients: list[Tensor] = []

    def table(self, part: slice) -> Tensor:
        scores_BHTR = self._scores_BHTR[part]
        places_T = torch.arange(scores_BHTR.shape[2], device=scores_BHTR.device)
        columns_TT = (places_T - places_T[:, None]).clamp(-self._left, self._right) + self._left
        return scores_BHTR.gather(-1, columns_TT.expand(*scores_BHTR.shape[:2], -1, -1))

    def collect(self, d_scores: Tensor, part: slice) -> None:
        self._gradients.append(sums_by_distance(d_scores, self._left, self._right).to(self._scores_BHTR.dtype))

    def gradients(self) -> tuple[Tensor, ...]:
        return (torch.cat(self._gradients),)


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


def sums_by_distance(table_BHTT: Tensor, left: int, right: int) -> Tensor:
    """Sums over the keys of each query with the same distance, or beyond the farthest one.

    With ``left`` and ``right`` columns of zeros at the sides, row ``i`` has its distances from column ``i`` on::

        0 0 a b c 0         a b c 0 0       left 2, right 1
        0 0 d e f 0   ->    0 d e f 0
        0 0 g h i 0         0 0 g h i

    Returns:
        Tensor of shape (batch, heads, frames, left + 1 + right).
    """
    batch, heads, frames, _ = table_BHTT.shape
    wide = functional.pad(table_BHTT, (left, right))
    width = wide.shape[-1]
    strides = (heads * frames * width, frames * width, width + 1, 1)
    sums_BHTR = wide.as_strided((batch, heads, frames, left + 1 + right), strides).contiguous()
    sums_BHTR[..., 0] += table_BHTT.tril(-left - 1).sum(-1)
    sums_BHTR[..., -1] += table_BHTT.triu(right + 1).sum(-1)
    return sums_BHTR


def _attention(
    make: Callable[..., _Bias],
    states: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor, ...],
    *,
    mask_BT: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention of ``states`` (queries, keys, values), with the bias that ``make`` gives for ``tensors``."""
    inputs = (*states, *tensors)
    if dropout > 0 or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        out_BHTD: Tensor = _RelativeAttention.apply(make, mask_BT, dropout, *inputs)  # type: ignore[no-untyped-call]
        return out_BHTD
    return _without_dropout(*states, make(*tensors), mask_BT)


def _without_dropout(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, bias: _Bias, mask_BT: Tensor | None) -> Tensor:
    parts = []
    for part in _parts(q_BHTD):
        table = bias.table(part).to(q_BHTD.dtype)
        if mask_BT is not None:
            table = table.masked_fill(~mask_BT[part, None, None], -torch.inf)
        parts.append(functional.scaled_dot_product_attention(q_BHTD[part], k_BHTD[part], v_BHTD[part], attn_mask=table))
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
    """Attention with a bias that computes its tables again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        make, mask, dropout, q, k, v, *tensors = inputs
        ctx.make, ctx.dropout = make, dropout
        # The seed is drawn on the CPU, so that nothing waits for the device.
        ctx.seed = int(torch.randint(1 << 62, (1,))) if dropout > 0 else 0
        bias = make(*tensors)
        if dropout == 0:
            out: Tensor = _without_dropout(q, k, v, bias, mask)
        else:
            generator = _generator(ctx.seed, q.device)
            parts = []
            for part in _parts(q):
                weights = attention_weights(q[part], k[part], bias.table(part), None if mask is None else mask[part])
                weights *= _kept(weights, dropout, generator)
                parts.append(weights.to(v.dtype) @ v[part])
            out = torch.cat(parts)
        ctx.save_for_backward(mask, out, q, k, v, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [d_out] = gradients
        mask, out, q, k, v, *tensors = ctx.saved_tensors
        scale, bias, generator = 1 / math.sqrt(q.shape[-1]), ctx.make(*tensors), _generator(ctx.seed, q.device)
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        for part in _parts(q):
            weights = attention_weights(q[part], k[part], bias.table(part), None if mask is None else mask[part])
            d_scores = (d_out[part] @ v[part].transpose(2, 3)).to(weights.dtype)
            dropped = weights
            if ctx.dropout > 0:
                kept = _kept(weights, ctx.dropout, generator)
                d_scores *= kept
                dropped = weights * kept
            d_v[part] = dropped.to(d_out.dtype).transpose(2, 3) @ d_out[part]
            d_scores -= (d_out[part] * out[part]).to(weights.dtype).sum(-1, keepdim=True)
            d_scores *= weights
            bias.collect(d_scores, part)
            d_scores = d_scores.to(q.dtype)
            d_q[part] = d_scores @ k[part] * scale
            d_k[part] = d_scores.transpose(2, 3) @ q[part] * scale
        return None, None, None, d_q, d_k, d_v, *bias.gradients()


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _kept(weights: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """The factor of each weight: 0, or ``1 / (1 - dropout)``."""
    keeps = torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator)
    return keeps.div_(1 - dropout)


def attention_weights(q: Tensor, k: Tensor, table: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Attention weights before dropout, in float32 at least."""
    scores = q @ k.transpose(2, 3)
    scores = scores.to(torch.promote_types(torch.float32, scores.dtype))
    scores = torch.add(table, scores, alpha=1 / math.sqrt(q.shape[-1]))
    if mask_BT is not None:
        scores = scores.masked_fill(~mask_BT[:, None, None], -torch.inf)
    return scores.softmax(-1)
