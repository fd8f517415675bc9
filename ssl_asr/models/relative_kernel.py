"""Attention with WavLM's gated position bias by Triton kernels. Importing this module needs triton."""

from typing import Any

import torch
import triton
from torch import Tensor

from ssl_asr.models.relative_triton import columns_kernel, distance_kernel, forward_kernel, rows_kernel
from ssl_asr.models.triton_kernels import on_device_of

_LARGEST_HEAD = 128
"""Features of a head for which tiles of 64 rows fit into the registers of 8 warps, in 16 bits. Others have 32 rows."""

_PARTS, _DISTANCES = 16, 64
"""Parts and distances that a program adds up at a time."""


def packed_attention(
    q_ND: Tensor,
    k_ND: Tensor,
    v_ND: Tensor,
    gate_NH: Tensor,
    relative_HR: Tensor,
    offsets: Tensor,
    *,
    longest: int,
    dropout: float,
    seed: Tensor | None = None,
) -> Tensor:
    """Attention of each utterance to itself, as `ssl_asr.models.relative_attention.relative_attention` computes it.

    Rows are frames of utterances of unequal lengths, one utterance after the other, without padding. Neither the
    forward nor the backward pass has a table of pairs of frames in memory, and the host never waits for the device.
    Scores, softmax and sums are in float32. Kept for backward are the inputs, the output, and the log-sum-exp of each
    row.

    Dropout draws 16 bits for each weight by Philox, so its probability is rounded to a multiple of 2**-16. The backward
    pass draws them again. The mask of an utterance depends on the seed and on the row of the utterance in the batch.

    The result is deterministic. The gradient of the bias is a sum over all utterances: each block of queries writes its
    sums over diagonals, one float32 for 32 or 64 scores, and a second kernel adds them in a fixed order. Atomic
    additions would take less memory, but their order, and with it the gradient, would differ from run to run.

    Args:
        q_ND, k_ND, v_ND: Tensors of shape (rows, heads * features), all in float32, bfloat16 or float16.
        gate_NH: Tensor of shape (rows, heads), factor of the bias for each query.
        relative_HR: Tensor of shape (heads, 2 * width - 1), bias of the distances ``1 - width`` to ``width - 1``.
        offsets: int32 on the device, shape (batch + 1,), first row of each utterance, and the number of rows.
        longest: int, number of frames of the longest utterance, at most ``width``.
        dropout: float in [0, 1), probability with which an attention weight is set to zero.
        seed: int64 on the device, one number. Default: None (drawn on the device).

    Returns:
        Tensor of the shape and type of ``v_ND``.

    Raises:
        RuntimeError: A second derivative is computed.
    """
    if dropout > 0 and seed is None:
        seed = torch.randint(1 << 62, (1,), device=q_ND.device)
    states = (q_ND, k_ND, v_ND)
    # One stride for all, which is that of each in practice.
    if q_ND.stride(1) != 1 or len({x.stride() for x in states}) > 1:
        q_ND, k_ND, v_ND = (x.contiguous() for x in states)
    out_ND: Tensor = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        q_ND, k_ND, v_ND, gate_NH.contiguous(), relative_HR.contiguous(), offsets, seed, longest, dropout
    )
    return out_ND


class _PackedAttention(torch.autograd.Function):
    """The launches of the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        q_ND: Tensor,
        k_ND: Tensor,
        v_ND: Tensor,
        gate_NH: Tensor,
        relative_HR: Tensor,
        offsets: Tensor,
        seed: Tensor | None,
        longest: int,
        dropout: float,
    ) -> Tensor:
        rows, heads = gate_NH.shape
        assert relative_HR.shape[1] >= 2 * longest - 1
        out_ND = torch.empty(v_ND.shape, dtype=v_ND.dtype, device=v_ND.device)
        log_sums_HN = torch.empty((heads, rows), dtype=torch.float32, device=v_ND.device)
        block, options = _options(q_ND, heads, relative_HR, dropout)
        if rows > 0:
            with on_device_of(q_ND):
                forward_kernel[triton.cdiv(longest, 2 * block), heads, len(offsets) - 1](
                    q_ND,
                    k_ND,
                    v_ND,
                    q_ND.stride(0),
                    gate_NH,
                    relative_HR,
                    offsets,
                    seed,
                    out_ND,
                    log_sums_HN,
                    block_i=2 * block,
                    block_j=block,
                    **options,
                )
        ctx.save_for_backward(q_ND, k_ND, v_ND, gate_NH, relative_HR, offsets, seed, out_ND, log_sums_HN)
        ctx.longest, ctx.options = longest, {**options, "block": block}
        return out_ND

    @staticmethod
    def backward(ctx: Any, d_out_ND: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Gradients.apply(  # type: ignore[no-untyped-call]
            d_out_ND.contiguous(), *ctx.saved_tensors, ctx.longest, ctx.needs_input_grad[4], ctx.options
        )
        return (*gradients, None, None, None, None)


class _Gradients(torch.autograd.Function):
    """The launches of the backward pass. A function by itself, so that its derivative can be refused."""

    @staticmethod
    def forward(
        _ctx: Any,
        d_out_ND: Tensor,
        q_ND: Tensor,
        k_ND: Tensor,
        v_ND: Tensor,
        gate_NH: Tensor,
        relative_HR: Tensor,
        offsets: Tensor,
        seed: Tensor | None,
        out_ND: Tensor,
        log_sums_HN: Tensor,
        longest: int,
        has_relative: bool,
        options: dict[str, Any],
    ) -> tuple[Tensor | None, ...]:
        (rows, heads), batch, block = gate_NH.shape, len(offsets) - 1, options["block"]
        d_q, d_k, d_v, d_gate = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_ND, k_ND, v_ND, gate_NH)
        )
        deltas_HN = torch.empty_like(log_sums_HN)
        blocks = triton.cdiv(longest, block)
        partials = None
        if has_relative:
            # A part for each block of queries of any utterance, with a value for each distance.
            shape = (rows // block + batch, heads, (blocks + 1) * block)
            partials = torch.empty(shape, dtype=torch.float32, device=q_ND.device)
        inputs = (q_ND, k_ND, v_ND, q_ND.stride(0), gate_NH, relative_HR, offsets, seed)
        if rows > 0:
            with on_device_of(q_ND):
                rows_kernel[blocks, heads, batch](
                    *inputs, out_ND, d_out_ND, log_sums_HN, deltas_HN, d_q, d_gate, partials, **options
                )
                # After the first kernel, which writes the deltas.
                columns_kernel[blocks, heads, batch](*inputs, d_out_ND, log_sums_HN, deltas_HN, d_k, d_v, **options)
        d_relative = None if partials is None else _summed(partials, offsets, relative_HR, block)
        return d_q, d_k, d_v, d_gate, d_relative

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("Attention with a position bias: the Triton kernels have no second derivative.")


def _options(q_ND: Tensor, heads: int, relative_HR: Tensor, dropout: float) -> tuple[int, dict[str, Any]]:
    """Rows of a tile, and options of the kernels that the passes share."""
    dim = q_ND.shape[1] // heads
    # Products of matrices need at least 16 features.
    block_d = max(triton.next_power_of_2(dim), 16)
    block = 64 if q_ND.element_size() == 2 and block_d <= _LARGEST_HEAD else 32
    return block, {
        "width": (relative_HR.shape[1] + 1) // 2,
        "threshold": min(round(dropout * 65536), 65535),
        "scale": dim**-0.5,
        "dim": dim,
        "block_d": block_d,
        "drops": dropout > 0,
        # As torch multiplies float32 matrices. Other types ignore it.
        "precision": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "num_warps": 8,
        "num_stages": 2,
    }


def _summed(partials: Tensor, offsets: Tensor, relative_HR: Tensor, block: int) -> Tensor:
    """Gradient of the bias, from the sums that the blocks of queries have written."""
    heads, distances = relative_HR.shape
    d_relative_HR = torch.zeros_like(relative_HR, dtype=torch.float32)
    if len(partials) > 0:
        with on_device_of(partials):
            distance_kernel[triton.cdiv(distances, _DISTANCES), heads](
                partials,
                offsets,
                d_relative_HR,
                len(offsets) - 1,
                (distances + 1) // 2,
                partials.shape[2],
                block=block,
                block_m=_PARTS,
                block_r=_DISTANCES,
                num_warps=4,
            )
    return d_relative_HR.to(relative_HR.dtype)
