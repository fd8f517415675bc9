"""CTC loss by Triton kernels. Importing this module needs triton; `ssl_asr.training.ctc_loss` imports it on GPUs."""

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from ssl_asr.models.triton_kernels import on_device_of
from ssl_asr.training.ctc_triton import lattice_kernel, normalizer_kernel, occupancy_kernel, softmax_kernel
from ssl_asr.types import on_device

_LARGEST_CHUNK = 1024
"""Vocabulary entries that a program reads at a time."""

_RESCALE_FRAMES = 16
"""Frames between two subtractions of the maximum, which keep float32 log-probabilities small and so precise."""

_TILE = 32
"""Side of the tiles in which labels are compared with labels."""


def ctc_loss(
    logits_BFV: Tensor, labels_BU: Tensor, frame_lengths_B: Tensor, label_lengths_B: Tensor, *, blank: int
) -> Tensor:
    """CTC loss of each utterance (Graves et al., 2006), fused with the log-softmax, ``loss_B`` in float32.

    Equals ``torch.nn.functional.ctc_loss(log_softmax(logits), ..., reduction="none", zero_infinity=True)``. The host
    never waits for the device, and the result is deterministic: no atomics.

    For labels ``c(0..U-1)``, the lattice has ``U`` label states and ``U + 1`` blank states: blank ``u`` is before label
    ``u``. With ``y(v, t) = logits(v, t) - logsumexp(logits(t))``, their forward log-probabilities are

        p_b(u, t) = y(blank, t) + logaddexp(p_b(u, t-1), p_l(u-1, t-1))
        p_l(u, t) = y(c(u), t)  + logsumexp(p_l(u, t-1), p_b(u, t-1), p_l(u-1, t-1) if c(u) != c(u-1))
        loss      = -logaddexp(p_b(U, T-1), p_l(U-1, T-1))         p_b(0, -1) = 0, all others -inf

    The backward log-probabilities, of all frames after ``t``, follow from the same recurrence on labels and frames in
    reverse order, before ``y`` is added. The gradient is softmax minus occupancy:

        occupancy(s, t)         = softmax over all states s of (forward(s, t) + backward(s, t))
        d loss / d logits(v, t) = softmax(v, t) - sum of occupancy(s, t) over the states s that emit v

    Forward and backward log-probabilities are computed side by side by two programs per utterance, because the
    recurrence is a chain of ``T`` steps and two chains take the time of one chain. They are kept for the backward
    pass, which is parallel over frames: ``16 (U + 1)`` bytes per frame, as torch's loss uses in its backward pass. The
    gradient is not computed in advance, because it has ``V`` values per frame. The logits are kept as they are, where
    torch's loss keeps log-probabilities in float32. Without gradients, nothing is kept.

    Args:
        logits_BFV: Logits in float32, bfloat16 or float16 with any strides. Computation is in float32.
        labels_BU: Labels, padded with any values, int64 or int32.
        frame_lengths_B: Number of frames of each utterance, on any device.
        label_lengths_B: Number of labels of each utterance, on any device.
        blank: Index of the blank.

    Returns:
        The losses. If the labels do not fit into the frames, loss and gradient are 0. If a length is larger than the
        tensor, or a label is not in the vocabulary, loss and gradient are NaN. Gradients of padding are 0.

    Raises:
        RuntimeError: A second derivative is computed.
    """
    device = logits_BFV.device
    others = [on_device(x, device).contiguous() for x in (labels_BU, frame_lengths_B, label_lengths_B)]
    loss_B: Tensor = _CtcLoss.apply(logits_BFV, *others, blank, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss_B


class _CtcLoss(torch.autograd.Function):
    """The launches of the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BFV: Tensor,
        labels_BU: Tensor,
        frame_lengths_B: Tensor,
        label_lengths_B: Tensor,
        blank: int,
        has_grad: bool,
    ) -> Tensor:
        batch, frames, vocabulary = logits_BFV.shape
        width = labels_BU.shape[1] + 1
        save = has_grad and ctx.needs_input_grad[0]
        create = partial(torch.empty, dtype=torch.float32, device=logits_BFV.device)
        normalizers_BF = create((batch, frames))
        # Infeasible utterances: infinite in the first row, 0 in the second.
        losses_NB = create((2, batch))
        # Direction, utterance, frame, kind of state (blank, label), state.
        lattices = create((2, batch, frames, 2, width) if save else (0,))
        block = triton.next_power_of_2(max(width, 2))
        with on_device_of(logits_BFV):
            if batch > 0 and frames > 0:
                normalizer_kernel[frames, batch](
                    logits_BFV,
                    *logits_BFV.stride(),
                    normalizers_BF,
                    frame_lengths_B,
                    frames,
                    vocabulary,
                    **_chunk(vocabulary),
                )
            if batch > 0:
                lattice_kernel[batch, 2 if save else 1](
                    logits_BFV,
                    *logits_BFV.stride(),
                    normalizers_BF,
                    labels_BU,
                    frame_lengths_B,
                    label_lengths_B,
                    losses_NB,
                    lattices,
                    batch,
                    frames,
                    vocabulary,
                    width,
                    blank,
                    block_u=block,
                    save=save,
                    rescale=_RESCALE_FRAMES,
                    num_warps=min(max(block // 64, 1), 16),
                )
        if save:
            ctx.save_for_backward(
                logits_BFV, labels_BU, frame_lengths_B, label_lengths_B, normalizers_BF, losses_NB, lattices
            )
            ctx.blank, ctx.block = blank, block
        loss_B: Tensor = losses_NB[1]
        return loss_B

    @staticmethod
    def backward(ctx: Any, grad_loss_B: Tensor) -> tuple[Tensor | None, ...]:
        grad_BFV = _CtcGradient.apply(grad_loss_B, *ctx.saved_tensors, ctx.blank, ctx.block)  # type: ignore[no-untyped-call]
        return grad_BFV, None, None, None, None, None


class _CtcGradient(torch.autograd.Function):
    """The launches of the backward pass. A function of its own, so that its derivative can be refused."""

    @staticmethod
    def forward(
        _ctx: Any,
        grad_loss_B: Tensor,
        logits_BFV: Tensor,
        labels_BU: Tensor,
        frame_lengths_B: Tensor,
        label_lengths_B: Tensor,
        normalizers_BF: Tensor,
        losses_NB: Tensor,
        lattices: Tensor,
        blank: int,
        block: int,
    ) -> Tensor:
        batch, frames, vocabulary = logits_BFV.shape
        grad_BFV = torch.empty(logits_BFV.shape, dtype=logits_BFV.dtype, device=logits_BFV.device)
        grad_loss_B = grad_loss_B.contiguous()
        shared = (logits_BFV, *logits_BFV.stride(), normalizers_BF, frame_lengths_B, losses_NB, grad_loss_B, grad_BFV)
        if grad_BFV.numel() > 0:
            with on_device_of(logits_BFV):
                softmax_kernel[frames, batch](*shared, frames, vocabulary, **_chunk(vocabulary))
                # A kernel of its own, because it replaces values that the first kernel has written.
                occupancy_kernel[frames, batch](
                    *shared,
                    labels_BU,
                    label_lengths_B,
                    lattices,
                    batch,
                    frames,
                    vocabulary,
                    labels_BU.shape[1] + 1,
                    blank,
                    block_u=block,
                    tile=_TILE,
                    num_warps=4,
                )
        return grad_BFV

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("CTC loss: the Triton kernel has no second derivative. Compute the loss on the CPU.")


def _chunk(vocabulary: int) -> dict[str, int]:
    """The vocabulary entries that a program reads at a time, and its warps."""
    chunk = min(triton.next_power_of_2(vocabulary), _LARGEST_CHUNK)
    return {"block_v": chunk, "num_warps": min(max(chunk // 256, 1), 4)}
