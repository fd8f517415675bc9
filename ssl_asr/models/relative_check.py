"""Whether the Triton kernels of `ssl_asr.models.relative_kernel` agree with torch on a device."""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from ssl_asr.models import triton_kernels
from ssl_asr.models.relative_attention import attention_weights, shortened, spread

TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference, as a share of the largest value. float32 may be multiplied as TF32."""


@cache
def has_kernel(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether the Triton kernels run on a device. The first call for a GPU compares them with torch.

    Args:
        device: torch.device.
        dtype: torch.dtype of the states. There is no kernel for float64.
        dim: int, number of features of a head. Kernels are compiled for a type and a number of features.
    """
    if dtype not in TOLERANCES:
        return False
    return triton_kernels.has_kernel(
        device,
        lambda: kernel_agrees(device, dtype, dim),
        what=f"Attention with a position bias ({dtype}, {dim} features per head)",
        instead="Tables of all pairs of frames are computed, which takes more time and memory.",
    )


def kernel_agrees(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether output and gradients of three utterances equal those of torch on the CPU. Draws no random numbers."""
    with torch.inference_mode(False), torch.enable_grad():
        return all(_agrees(device, dtype, dim, dropout) for dropout in (0.0, 0.3))


def _agrees(device: torch.device, dtype: torch.dtype, dim: int, dropout: float) -> bool:
    lengths, heads = [70, 1, 33], 2
    shapes = [*[(sum(lengths), heads * dim)] * 3, (sum(lengths), heads), (heads, 2 * max(lengths) - 1)]
    values = [torch.arange(a * b).add(place).square().sin().view(a, b) for place, (a, b) in enumerate(shapes)]
    factors_ND = values[0].flip(0)
    # Gates and biases are in float32 in training.
    ours = [x.to(device, dtype if place < 3 else None).requires_grad_() for place, x in enumerate(values)]
    theirs = [x.detach().cpu().float().requires_grad_() for x in ours]
    kept = None if dropout == 0 else [x.cpu() for x in kept_by_kernel(ours, lengths, dropout=dropout, seed=1)]
    found, expected = (
        [out_ND, *torch.autograd.grad(out_ND, inputs, factors_ND.to(out_ND))]
        for out_ND, inputs in (
            (by_kernel(ours, lengths, dropout=dropout, seed=1), ours),
            (by_torch(theirs, lengths, dropout=dropout, kept=kept), theirs),
        )
    )
    # False for NaN.
    return all(
        bool((one.detach().cpu() - other).abs().max() <= TOLERANCES[dtype] * other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )


def by_kernel(inputs: Sequence[Tensor], lengths: Sequence[int], *, dropout: float, seed: int) -> Tensor:
    """Attention by the kernels. Inputs are those of `packed_attention`."""
    from ssl_asr.models.relative_kernel import packed_attention

    q_ND, k_ND, v_ND, gate_NH, relative_HR = inputs
    device = q_ND.device
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    longest = max(lengths, default=0)
    seed_1 = torch.tensor([seed], device=device)
    return packed_attention(
        q_ND, k_ND, v_ND, gate_NH, relative_HR, offsets, longest=longest, dropout=dropout, seed=seed_1
    )


def kept_by_kernel(inputs: Sequence[Tensor], lengths: Sequence[int], *, dropout: float, seed: int) -> list[Tensor]:
    """The weights that dropout keeps for a seed: a bool table of shape (heads, frames, frames) for each utterance.

    The output of attention is its weights if values are one for one key and zero for all others. Scores of zero give
    equal weights, so a weight is zero only if it is dropped.
    """
    (rows, width), heads = inputs[0].shape, inputs[3].shape[1]
    dim = width // heads
    zeros = [torch.zeros_like(x) for x in inputs]
    places_N = torch.cat([torch.arange(n) for n in lengths]).to(inputs[0].device)
    found = []
    for first in range(0, max(lengths), dim):
        one_hot_ND = (places_N[:, None] - first == torch.arange(dim, device=places_N.device)).to(inputs[0].dtype)
        zeros[2] = one_hot_ND.repeat(1, heads)
        found.append(by_kernel(zeros, lengths, dropout=dropout, seed=seed).view(rows, heads, dim) != 0)
    table_HNT = torch.cat(found, 2).transpose(0, 1)
    return [own[..., : own.shape[1]] for own in torch.split(table_HNT, list(lengths), 1)]


def by_torch(
    inputs: Sequence[Tensor], lengths: Sequence[int], *, dropout: float = 0.0, kept: Sequence[Tensor] | None = None
) -> Tensor:
    """Attention by torch, one utterance after the other. Differentiated by autograd, so tables are kept in memory.

    Args:
        inputs: Those of `packed_attention`.
        lengths: Number of frames of each utterance.
        dropout: float, probability of dropout.
        kept: The weights that dropout keeps. Default: None (all).
    """
    return torch.cat(list(_utterances(inputs, lengths, dropout, kept)))


def _utterances(
    inputs: Sequence[Tensor], lengths: Sequence[int], dropout: float, kept: Sequence[Tensor] | None
) -> Iterator[Tensor]:
    rows, heads = inputs[3].shape
    states = [torch.split(x.view(rows, heads, -1).transpose(0, 1), list(lengths), 1) for x in inputs[:3]]
    gates = torch.split(inputs[3].T, list(lengths), 1)
    for row, frames in enumerate(lengths):
        if frames == 0:
            continue
        q, k, v = (x[row][None] for x in states)
        table = gates[row][None, ..., None] * spread(shortened(inputs[4], frames), frames)
        weights = attention_weights(q, k, table, None)
        if kept is not None:
            weights = weights * kept[row] / (1 - dropout)
        yield (weights @ v)[0].transpose(0, 1).flatten(1)
