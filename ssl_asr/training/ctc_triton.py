"""The Triton kernels of `ssl_asr.training.ctc_kernel.ctc_loss`, which has the recurrence.

normalizer_kernel   log-sum-exp of the logits of each frame
lattice_kernel      forward and backward log-probabilities of each state, and the loss
softmax_kernel      the gradient without occupancies
occupancy_kernel    the gradient at the blank and at the labels of the utterance

``p_b`` and ``p_l`` hold the blank and the label states of an utterance, ``t`` is its number of frames and ``u_count``
its number of labels.
"""

import triton
import triton.language as tl


@triton.jit
def _logaddexp(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    top = tl.maximum(one, other)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.exp(one - top) + tl.exp(other - top))


@triton.jit(do_not_specialize=["frames"])
def normalizer_kernel(
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
) -> tuple[tl.tensor, tl.tensor]:
    """Log-probabilities ``y`` of the labels and of the blank in a frame. Unknown labels have NaN."""
    logits += frame * stride_f
    normalizer = tl.load(normalizers + frame, mask=is_frame, other=0.0)
    of_blank = tl.load(logits + blank * stride_v, mask=is_frame, other=0.0).to(tl.float32)
    of_label = tl.load(logits + label * stride_v, mask=is_known & is_frame, other=float("nan")).to(tl.float32)
    return tl.where(is_label, of_label - normalizer, float("-inf")), of_blank - normalizer


@triton.jit
def _lengths(
    frame_length: tl.tensor, label_length: tl.tensor, frames: tl.tensor, width: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Number of frames and of labels, or 0 for both if the tensors do not have as many."""
    t, u_count = tl.load(frame_length).to(tl.int64), tl.load(label_length).to(tl.int64)
    is_wrong = (t < 0) | (t > frames) | (u_count < 0) | (u_count >= width)
    return tl.where(is_wrong, 0, t), tl.where(is_wrong, 0, u_count), is_wrong


@triton.jit
def _labels(
    labels: tl.tensor, place: tl.tensor, u: tl.tensor, u_count: tl.tensor, is_back: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The labels in the order of a direction, and whether each may follow the one before it without a blank."""
    label = tl.load(labels + place, mask=u < u_count, other=0).to(tl.int64)
    has_before = (u < u_count) & (u > 0)
    before = tl.load(labels + tl.where(is_back, place + 1, place - 1), mask=has_before, other=0).to(tl.int64)
    return label, has_before & (label != before)


@triton.jit
def _step(p_b: tl.tensor, p_l: tl.tensor, u: tl.tensor, skips: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The recurrence of `ctc_loss`, before the log-probabilities of the frame are added."""
    previous = tl.where(u > 0, tl.gather(p_l, tl.maximum(u - 1, 0), 0), float("-inf"))
    into_l = _logaddexp(_logaddexp(p_l, p_b), tl.where(skips, previous, float("-inf")))
    return _logaddexp(p_b, previous), into_l


@triton.jit
def _centered(p_b: tl.tensor, p_l: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The states minus their maximum, and the maximum."""
    top = tl.max(tl.maximum(p_b, p_l), 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    return p_b - top, p_l - top, top


@triton.jit
def _total(p_b: tl.tensor, p_l: tl.tensor, u: tl.tensor, u_count: tl.tensor) -> tl.tensor:
    """Log-probability of the last two states."""
    # Sums, not maxima: a maximum loses NaN.
    last_b = tl.sum(tl.where(u == u_count, p_b, 0.0), 0)
    last_l = tl.sum(tl.where(u == u_count - 1, p_l, 0.0), 0)
    return _logaddexp(last_b, tl.where(u_count > 0, last_l, float("-inf")))


@triton.jit(do_not_specialize=["batch", "frames", "width", "blank"])
def lattice_kernel(
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
    """All frames of the lattice. One program per utterance and direction: 0 forward, 1 backward."""
    row, is_back = tl.program_id(0).to(tl.int64), tl.program_id(1) == 1
    t, u_count, is_wrong = _lengths(frame_lengths + row, label_lengths + row, frames, width)
    u = tl.arange(0, block_u)
    place = tl.where(is_back, u_count - 1 - u, u)
    label, skips = _labels(labels + row * (width - 1), place, u, u_count, is_back)
    is_label = u < u_count
    is_known = is_label & (label >= 0) & (label < vocabulary)
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
        into_b, into_l = _step(p_b, p_l, u, skips)
        p_b, p_l = into_b + y_blank, into_l + y_label
        if save:
            at = lattices + frame * 2 * width
            tl.store(at + tl.where(is_back, u_count - u, u), tl.where(is_back, into_b, p_b), mask=u <= u_count)
            tl.store(at + width + place, tl.where(is_back, into_l, p_l), mask=is_label)
        if step % rescale == rescale - 1:
            p_b, p_l, top = _centered(p_b, p_l)
            scale += top.to(tl.float64)
        y_label, y_blank, frame = next_label, next_blank, following

    loss = -(scale + _total(p_b, p_l, u, u_count)).to(tl.float32)
    loss = tl.where(is_wrong, float("nan"), loss)
    tl.store(losses + row, loss, mask=tl.program_id(1) == 0)
    tl.store(losses + batch + row, tl.where(loss == float("inf"), 0.0, loss), mask=tl.program_id(1) == 0)


@triton.jit(do_not_specialize=["frames"])
def softmax_kernel(
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


@triton.jit
def _both(forward: tl.tensor, backward: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Forward plus backward log-probabilities of states; -inf for states that the utterance does not have."""
    p = tl.load(forward, mask=inside, other=float("-inf"))
    return p + tl.load(backward, mask=inside, other=float("-inf"))


@triton.jit
def _equal_labels(
    labels: tl.tensor,
    forward: tl.tensor,
    backward: tl.tensor,
    own: tl.tensor,
    own_label: tl.tensor,
    u_count: tl.tensor,
    top: tl.tensor,
    tile: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """For some labels: summed probability of the states with an equal label, and how many of these are earlier."""
    occupancy = tl.zeros((tile,), tl.float32)
    earlier = tl.zeros((tile,), tl.int32)
    for start in range(0, u_count, tile):
        u = start + tl.arange(0, tile)
        label = tl.load(labels + u, mask=u < u_count, other=-2).to(tl.int64)
        p = tl.exp(_both(forward + u, backward + u, u < u_count) - top)
        equal = own_label[:, None] == label[None, :]
        occupancy += tl.sum(tl.where(equal, p[None, :], 0.0), 1)
        earlier += tl.sum((equal & (u[None, :] < own[:, None])).to(tl.int32), 1)
    return occupancy, earlier


@triton.jit(do_not_specialize=["batch", "frames", "width", "blank"])
def occupancy_kernel(
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
        p_b = _both(forward + u, backward + u, u <= u_count)
        p_l = _both(forward + width + u, backward + width + u, u < u_count)
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
            occupancy, earlier = _equal_labels(
                labels, forward + width, backward + width, own, own_label, u_count, top, tile
            )
            stored = (own < u_count) & (own_label != blank) & (earlier == 0)
            x = tl.load(logits + own_label * stride_v, mask=stored, other=0.0).to(tl.float32)
            grad = (tl.exp(x - normalizer) - occupancy / total) * factor
            tl.store(grads + own_label, grad.to(grads.dtype.element_ty), mask=stored)
