"""The CTC loss: forward and backward pass, ours and torch's, after a check against torch in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ssl_asr.training.ctc_loss import ctc_losses, has_kernel
from ssl_asr.types import Seconds
from tests.gpu.steps import Setup, Step

FRAMES_PER_S = 50
LABELS_PER_S = 11


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch of random logits and labels. Lengths are on the CPU, as in training."""

    logits_BFV: Tensor
    labels_BU: Tensor
    frame_lengths_B: Tensor
    label_lengths_B: Tensor
    blank: int = 0


def make_case(
    device: str,
    frame_lengths: Sequence[int],
    label_lengths: Sequence[int],
    *,
    vocabulary: int,
    dtype: torch.dtype = torch.float32,
    blank: int = 0,
) -> Case:
    """Random values, the same on every device."""
    draw = torch.Generator().manual_seed(1)
    batch, frames, labels = len(frame_lengths), max(frame_lengths), max(label_lengths)
    labels_BU = torch.randint(0, vocabulary - 1, (batch, labels), generator=draw)
    return Case(
        logits_BFV=(2.0 * torch.randn(batch, frames, vocabulary, generator=draw)).to(device, dtype),
        labels_BU=(labels_BU + (labels_BU >= blank)).to(device),
        frame_lengths_B=torch.tensor(frame_lengths),
        label_lengths_B=torch.tensor(label_lengths),
        blank=blank,
    )


def edge_cases(setup: Setup) -> list[Case]:
    """Every kind of length, any blank, strides, each dtype; few and many labels, frames and entries.

    Sizes are chosen so that few kernels are compiled.
    """
    lengths = {"frame_lengths": [7, 6, 5, 4, 1, 3, 0, 0, 1, 7], "label_lengths": [4, 3, 4, 4, 1, 0, 1, 0, 2, 2]}
    make = partial(make_case, setup.device)
    cases = [make(**lengths, vocabulary=30, blank=blank, dtype=torch.bfloat16) for blank in (0, 1, 29)]
    plain = make([50, 31], [9, 17], vocabulary=12, dtype=torch.float16)
    cases += [replace(plain, logits_BFV=plain.logits_BFV.permute(2, 0, 1).contiguous().permute(1, 2, 0))]
    if setup.tiny:
        return cases
    return [
        *cases,
        make([900, 777], [400, 1], vocabulary=30, dtype=torch.bfloat16),
        make([60, 30], [20, 8], vocabulary=50_257, blank=50_256),
        make([300] * 64, list(range(64)), vocabulary=1025),
        make([2500, 40], [0, 0], vocabulary=1025),
    ]


def losses_and_gradient(
    case: Case, compute: Callable[[Tensor, Case], Tensor], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their sum."""
    logits_BFV = case.logits_BFV.detach().to(dtype or case.logits_BFV.dtype).requires_grad_()
    losses_B = compute(logits_BFV, case)
    return losses_B.detach(), torch.autograd.grad(losses_B.sum(), logits_BFV)[0]


def torch_losses(logits_BFV: Tensor, case: Case) -> Tensor:
    """By torch, from log-probabilities in at least float32."""
    logits_BFV = logits_BFV if logits_BFV.dtype is torch.float64 else logits_BFV.float()
    log_probs_FBV = logits_BFV.log_softmax(-1).transpose(0, 1)
    lengths = (case.frame_lengths_B, case.label_lengths_B)
    return functional.ctc_loss(
        log_probs_FBV, case.labels_BU, *lengths, case.blank, reduction="none", zero_infinity=True
    )


def our_losses(logits_BFV: Tensor, case: Case) -> Tensor:
    """By the kernel on a GPU. On a CPU by torch, so that this file runs there."""
    if not logits_BFV.is_cuda:
        return torch_losses(logits_BFV, case)
    from ssl_asr.training.ctc_kernel import ctc_loss

    return ctc_loss(logits_BFV, case.labels_BU, case.frame_lengths_B, case.label_lengths_B, blank=case.blank)


def check(case: Case) -> None:
    """Compare with torch in float64, and with a second computation bit by bit.

    Raises:
        AssertionError: The results differ.
    """
    losses_B, grad_BFV = losses_and_gradient(case, our_losses)
    expected_B, expected_BFV = losses_and_gradient(case, torch_losses, torch.float64)
    torch.testing.assert_close(losses_B.double(), expected_B, rtol=1e-5, atol=1e-3)
    # In half precision, the gradient is rounded. float32 has an absolute error in the sums over 2500 frames.
    rounding = torch.finfo(case.logits_BFV.dtype).eps if case.logits_BFV.dtype.itemsize == 2 else 0.0
    torch.testing.assert_close(grad_BFV.double(), expected_BFV, rtol=1e-3 + rounding, atol=2e-4)
    again_B, again_BFV = losses_and_gradient(case, our_losses)
    assert torch.equal(losses_B, again_B)
    assert torch.equal(grad_BFV, again_BFV) or not case.logits_BFV.is_cuda


def ctc_step(setup: Setup, durations: Sequence[Seconds], *, vocabulary: int, ours: bool, edges: bool) -> Step:
    """Loss and gradient of a batch of bfloat16 logits, as autocast gives them. Ours is checked first.

    Args:
        edges: Whether edge cases are checked as well.

    Raises:
        AssertionError: The kernel does not run, or its results differ from those of torch.
    """
    device = torch.zeros((), device=setup.device).device
    frame_lengths = [int(FRAMES_PER_S * duration) for duration in durations]
    label_lengths = [int(LABELS_PER_S * duration) for duration in durations]
    case = make_case(setup.device, frame_lengths, label_lengths, vocabulary=vocabulary, dtype=torch.bfloat16)
    if ours:
        assert has_kernel(device) or setup.device == "cpu", "the kernel does not run here: see the warning"
        for own in [*(edge_cases(setup) if edges else []), case]:
            check(own)
    logits_BFV = case.logits_BFV.requires_grad_()

    def step() -> None:
        if ours:
            losses_B = ctc_losses(logits_BFV, case.frame_lengths_B, case.labels_BU, case.label_lengths_B)
        else:
            losses_B = torch_losses(logits_BFV, case)
        losses_B.sum().backward()
        logits_BFV.grad = None

    return step
