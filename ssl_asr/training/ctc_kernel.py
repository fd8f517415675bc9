"""CTC loss in Triton. Importing this module needs triton; `ssl_asr.training.ctc_loss` chooses the implementation."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    lengths = [lengths_B.to(device, non_blocking=True) for lengths_B in (frame_lengths_B, label_lengths_B)]
    labels_BU = labels_BU.to(device, non_blocking=True).contiguous()
    loss_B: Tensor = _CtcLoss.apply(logits_BFV, labels_BU, *lengths, blank, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
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
        with _on_device_of(logits_BFV):
            if batch > 0 and frames > 0:
                _normalizer_kernel[frames, batch](
                    logits_BFV,
                    *logits_BFV.stride(),
                    normalizers_BF,
                    frame_lengths_B,
                    frames,
                    vocabulary,
                    **_chunk(vocabulary),
                )
            if batch > 0:
                _lattice_kernel[batch, 2 if save else 1](
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
            with _on_device_of(logits_BFV):
                _softmax_kernel[frames, batch](*shared, frames, vocabulary, **_chunk(vocabulary))
                # A kernel of its own, because it replaces values that the first kernel has written.
                _occupancy_kernel[frames, batch](
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


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels on the tensor's device, which need not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _chunk(vocabulary: int) -> dict[str, int]:
    """The vocabulary entries that a program reads at a time, and its warps."""
    chunk = min(triton.next_power_of_2(vocabulary), _LARGEST_CHUNK)
    return {"block_v": chunk, "num_warps": min(max(chunk // 256, 1), 4)}


@triton.jit
def _logaddexp(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    top = tl.maximum(one, other)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.exp(one - top) + tl.exp(other - top))


@triton.jit(do_not_specialize=["frames"])
def _normalizer_kernel(
    logits: tl.tensor,
    stride_b: tl.tensor,
    stride_f: tl.tensor,
    stride_v: tl.tensor,
    normalizers: tl.tensor,
    frame_lengths: tl.tensor,
    frames: tl.tensor,
    vocabulary: tl.tensor,
    block_v: tl.constexpr,
) -> None:
    """Log-sum-exp of the logits of a frame. One program per frame and utterance."""
    frame, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if frame < tl.load(frame_lengths + row):
        logits += row * stride_b + frame * stride_f
        v = tl.arange(0, block_v).to(tl.int64)
        tops = tl.full((block_v,), float("-inf"), tl.float32)
        for start in range(0, vocabulary, block_v):
            inside = start + v < vocabulary
            x = tl.load(logits + (start + v) * stride_v, mask=inside, other=float("-inf"))
            tops = tl.maximum(tops, x.to(tl.float32))
        top = tl.max(tops, 0)
        sums = tl.zeros((block_v,), tl.float32)
        for start in range(0, vocabulary, block_v):
            inside = start + v < vocabulary
            x = tl.load(logits + (start + v) * stride_v, mask=inside, other=0.0).to(tl.float32)
            sums += tl.where(inside, tl.exp(x - top), 0.0)
        tl.store(normalizers + row * frames + frame, top + tl.log(tl.sum(sums, 0)))


@triton.jit
def _emissions(
    logits: tl.tensor,
    stride_f: tl.tensor,
    stride_v: tl.tensor,
    normalizers: tl.tensor,
    label: tl.tensor,
    is_label: tl.tensor,
    is_known: tl.tensor,
    blank: tl.tensor,
    frame: tl.tensor,
    is_frame: tl.tensor,
) -> tl.tensor:
    """Log-probabilities ``y`` of the labels and of the blank in a frame. Unknown labels have NaN."""
    logits += frame * stride_f
    normalizer = tl.load(normalizers + frame, mask=is_frame, other=0.0)
    of_blank = tl.load(logits + blank * stride_v, mask=is_frame, other=0.0).to(tl.float32)
    of_label = tl.load(logits + label * stride_v, mask=is_known & is_frame, other=float("nan")).to(tl.float32)
    return tl.where(is_label, of_label - normalizer, float("-inf")), of_blank - normalizer


@triton.jit(do_not_specialize=["batch", "frames", "width", "blank"])
def _lattice_kernel(
    logits: tl.tensor,
    stride_b: tl.tensor,
    stride_f: tl.tensor,
    stride_v: tl.tensor,
    normalizers: tl.tensor,
    labels: tl.tensor,
    frame_lengths: tl.tensor,
    label_lengths: tl.tensor,
    losses: tl.tensor,
    lattices: tl.tensor,
    batch: tl.tensor,
    frames: tl.tensor,
    vocabulary: tl.tensor,
    width: tl.tensor,
    blank: tl.tensor,
    block_u: tl.constexpr,
    save: tl.constexpr,
    rescale: tl.constexpr,
) -> None:
    """The recurrence of `ctc_loss`. One program per utterance and direction: 0 forward, 1 backward."""
    row, is_back = tl.program_id(0).to(tl.int64), tl.program_id(1) == 1
    t, u_count = tl.load(frame_lengths + row).to(tl.int64), tl.load(label_lengths + row).to(tl.int64)
    is_wrong = (t < 0) | (t > frames) | (u_count < 0) | (u_count >= width)
    t, u_count = tl.where(is_wrong, 0, t), tl.where(is_wrong, 0, u_count)

    u = tl.arange(0, block_u)
    is_label = u < u_count
    place = tl.where(is_back, u_count - 1 - u, u)
    labels += row * (width - 1)
    label = tl.load(labels + place, mask=is_label, other=0).to(tl.int64)
    is_known = is_label & (label >= 0) & (label < vocabulary)
    before = tl.load(labels + tl.where(is_back, place + 1, place - 1), mask=is_label & (u > 0), other=0).to(tl.int64)
    skips = is_label & (u > 0) & (label != before)

    blank = blank.to(tl.int64)
    logits += row * stride_b
    normalizers += row * frames
    lattices += (tl.program_id(1) * batch + row) * frames * 2 * width
    p_b = tl.where(u == 0, 0.0, float("-inf"))
    p_l = tl.full((block_u,), float("-inf"), tl.float32)
    scale = tl.zeros((), tl.float64)
    frame = tl.where(is_back, t - 1, 0)
    y_label, y_blank = _emissions(
        logits, stride_f, stride_v, normalizers, label, is_label, is_known, blank, frame, t > 0
    )
    for step in range(t):
        # The loads of the next frame run while this frame is computed.
        following = tl.where(is_back, frame - 1, frame + 1)
        next_label, next_blank = _emissions(
            logits, stride_f, stride_v, normalizers, label, is_label, is_known, blank, following, step + 1 < t
        )
        previous = tl.where(u > 0, tl.gather(p_l, tl.maximum(u - 1, 0), 0), float("-inf"))
        into_b = _logaddexp(p_b, previous)
        into_l = _logaddexp(_logaddexp(p_l, p_b), tl.where(skips, previous, float("-inf")))
        p_b, p_l = into_b + y_blank, into_l + y_label
        if save:
            at = lattices + frame * 2 * width
            tl.store(at + tl.where(is_back, u_count - u, u), tl.where(is_back, into_b, p_b), mask=u <= u_count)
            tl.store(at + width + place, tl.where(is_back, into_l, p_l), mask=is_label)
        if step % rescale == rescale - 1:
            top = tl.max(tl.maximum(p_b, p_l), 0)
            top = tl.where(top == float("-inf"), 0.0, top)
            p_b, p_l = p_b - top, p_l - top
            scale += top.to(tl.float64)
        y_label, y_blank, frame = next_label, next_blank, following

    # Sums, not maxima: a maximum loses NaN.
    last_b = tl.sum(tl.where(u == u_count, p_b, 0.0), 0)
    last_l = tl.sum(tl.where(u == u_count - 1, p_l, 0.0), 0)
    last_l = tl.where(u_count > 0, last_l, float("-inf"))
    loss = -(scale + _logaddexp(last_b, last_l)).to(tl.float32)
    loss = tl.where(is_wrong, float("nan"), loss)
    tl.store(losses + row, loss, mask=tl.program_id(1) == 0)
    tl.store(losses + batch + row, tl.where(loss == float("inf"), 0.0, loss), mask=tl.program_id(1) == 0)


@triton.jit(do_not_specialize=["frames"])
def _softmax_kernel(
    logits: tl.tensor,
    stride_b: tl.tensor,
    stride_f: tl.tensor,
    stride_v: tl.tensor,
    normalizers: tl.tensor,
    frame_lengths: tl.tensor,
    losses: tl.tensor,
    grad_losses: tl.tensor,
    grads: tl.tensor,
    frames: tl.tensor,
    vocabulary: tl.tensor,
    block_v: tl.constexpr,
) -> None:
    """Softmax times the gradient of the loss; 0 in padding and for labels that do not fit. One program per frame."""
    frame, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    loss = tl.load(losses + row)
    counts = (frame < tl.load(frame_lengths + row)) & (loss != float("inf"))
    factor = tl.where(loss == loss, tl.load(grad_losses + row), float("nan"))
    normalizer = tl.load(normalizers + row * frames + frame, mask=counts, other=0.0)
    logits += row * stride_b + frame * stride_f
    grads += (row * frames + frame) * vocabulary
    v = tl.arange(0, block_v).to(tl.int64)
    for start in range(0, vocabulary, block_v):
        inside = start + v < vocabulary
        x = tl.load(logits + (start + v) * stride_v, mask=inside & counts, other=0.0).to(tl.float32)
        grad = tl.where(counts, tl.exp(x - normalizer) * factor, 0.0)
        tl.store(grads + start + v, grad.to(grads.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "frames", "width", "blank"])
def _occupancy_kernel(
    logits: tl.tensor,
    stride_b: tl.tensor,
    stride_f: tl.tensor,
    stride_v: tl.tensor,
    normalizers: tl.tensor,
    frame_lengths: tl.tensor,
    losses: tl.tensor,
    grad_losses: tl.tensor,
    grads: tl.tensor,
    labels: tl.tensor,
    label_lengths: tl.tensor,
    lattices: tl.tensor,
    batch: tl.tensor,
    frames: tl.tensor,
    vocabulary: tl.tensor,
    width: tl.tensor,
    blank: tl.tensor,
    block_u: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Softmax minus occupancy at the blank and at the labels of an utterance. One program per frame."""
    frame, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    blank = blank.to(tl.int64)
    # False for infeasible labels, and for NaN.
    is_finite = tl.load(losses + row) < float("inf")
    if (frame < tl.load(frame_lengths + row)) & is_finite:
        u_count = tl.load(label_lengths + row).to(tl.int64)
        factor = tl.load(grad_losses + row)
        normalizer = tl.load(normalizers + row * frames + frame)
        logits += row * stride_b + frame * stride_f
        grads += (row * frames + frame) * vocabulary
        labels += row * (width - 1)
        forward = lattices + (row * frames + frame) * 2 * width
        backward = forward + batch.to(tl.int64) * frames * 2 * width

        u = tl.arange(0, block_u)
        minus = float("-inf")
        p_b = tl.load(forward + u, mask=u <= u_count, other=minus) + tl.load(
            backward + u, mask=u <= u_count, other=minus
        )
        p_l = _label_states(forward + width, backward + width, u, u_count)
        top = tl.max(tl.maximum(p_b, p_l), 0)
        p_b, p_l = tl.exp(p_b - top), tl.exp(p_l - top)
        total = tl.sum(p_b, 0) + tl.sum(p_l, 0)
        label = tl.load(labels + u, mask=u < u_count, other=-1)
        of_blank = (tl.sum(p_b, 0) + tl.sum(tl.where(label == blank, p_l, 0.0), 0)) / total
        softmax = tl.exp(tl.load(logits + blank * stride_v).to(tl.float32) - normalizer)
        tl.store(grads + blank, ((softmax - of_blank) * factor).to(grads.dtype.element_ty))

        # The states of equal labels are added up tile by tile, in a fixed order. The first of the labels is stored.
        for start in range(0, u_count, tile):
            own = start + tl.arange(0, tile)
            own_label = tl.load(labels + own, mask=own < u_count, other=-1).to(tl.int64)
            occupancy = tl.zeros((tile,), tl.float32)
            earlier = tl.zeros((tile,), tl.int32)
            for other_start in range(0, u_count, tile):
                other = other_start + tl.arange(0, tile)
                other_label = tl.load(labels + other, mask=other < u_count, other=-2).to(tl.int64)
                p = tl.exp(_label_states(forward + width, backward + width, other, u_count) - top)
                equal = own_label[:, None] == other_label[None, :]
                occupancy += tl.sum(tl.where(equal, p[None, :], 0.0), 1)
                earlier += tl.sum((equal & (other[None, :] < own[:, None])).to(tl.int32), 1)
            stored = (own < u_count) & (own_label != blank) & (earlier == 0)
            x = tl.load(logits + own_label * stride_v, mask=stored, other=0.0).to(tl.float32)
            grad = (tl.exp(x - normalizer) - occupancy / total) * factor
            tl.store(grads + own_label, grad.to(grads.dtype.element_ty), mask=stored)


@triton.jit
def _label_states(forward: tl.tensor, backward: tl.tensor, u: tl.tensor, u_count: tl.tensor) -> tl.tensor:
    """Forward plus backward log-probabilities of label states; -inf beyond the last label."""
    inside = u < u_count
    one = tl.load(forward + u, mask=inside, other=float("-inf"))
    return one + tl.load(backward + u, mask=inside, other=float("-inf"))
