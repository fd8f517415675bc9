"""CTC loss of a batch: a Triton kernel on GPUs, torch's loss elsewhere."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ssl_asr.models import triton_kernels
from ssl_asr.types import BLANK_ID, on_device


def ctc_losses(logits_BFV: Tensor, frame_lengths_B: Tensor, tokens_BU: Tensor, token_lengths_B: Tensor) -> Tensor:
    """CTC loss of each utterance divided by its number of labels, ``loss_B``, float32.

    Targets that do not fit were dropped before training. If audio turns out shorter than its manifest says, its
    infinite loss is replaced by zero.

    Args:
        logits_BFV: Logits of any floating dtype, the blank at `BLANK_ID`. The loss is computed in float32.
        frame_lengths_B: Number of frames of each utterance, int64, on the CPU.
        tokens_BU: Labels, padded.
        token_lengths_B: Number of labels of each utterance, int64, on the CPU.
    """
    compute = _kernel_losses if has_kernel(logits_BFV.device) else _torch_losses
    nll_B = compute(logits_BFV, frame_lengths_B, tokens_BU, token_lengths_B)
    loss_B: Tensor = nll_B / on_device(token_lengths_B.clamp(min=1), nll_B.device)
    return loss_B


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on a device. The first call for a GPU compares it with torch's loss."""
    return triton_kernels.has_kernel(
        device,
        lambda: kernel_agrees(device),
        what="CTC loss",
        instead="torch's loss is used, which is slower and waits for the GPU.",
    )


def kernel_agrees(device: torch.device) -> bool:
    """Whether loss and gradient of two short utterances equal those of torch on the CPU. Draws no random numbers."""
    batch, frames, vocabulary = 2, 24, 12
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        tokens_BU = torch.tensor([[3, 3, 5, 1, 7, 11, 2, 2], [4, 1, 4, 0, 0, 0, 0, 0]])
        frame_lengths_B, token_lengths_B = torch.tensor([24, 9]), torch.tensor([8, 3])
        values_BFV = 3.0 * torch.arange(batch * frames * vocabulary).square().sin().view(batch, frames, vocabulary)
        for compute, place in ((_kernel_losses, device), (_torch_losses, torch.device("cpu"))):
            logits_BFV = values_BFV.to(place).requires_grad_()
            nll_B = compute(logits_BFV, frame_lengths_B, tokens_BU.to(place), token_lengths_B)
            [grad_BFV] = torch.autograd.grad(nll_B.sum(), logits_BFV)
            found.append(torch.cat([nll_B.detach(), grad_BFV.flatten()]).cpu())
    ours_N, expected_N = found
    return torch.allclose(ours_N, expected_N, rtol=1e-4, atol=1e-4)


def _kernel_losses(logits_BFV: Tensor, frame_lengths_B: Tensor, tokens_BU: Tensor, token_lengths_B: Tensor) -> Tensor:
    """Negative log-likelihoods, by the Triton kernel."""
    from ssl_asr.training.ctc_kernel import ctc_loss

    return ctc_loss(logits_BFV, tokens_BU, frame_lengths_B, token_lengths_B, blank=BLANK_ID)


def _torch_losses(logits_BFV: Tensor, frame_lengths_B: Tensor, tokens_BU: Tensor, token_lengths_B: Tensor) -> Tensor:
    """Negative log-likelihoods, by torch."""
    with torch.autocast(logits_BFV.device.type, enabled=False):
        return functional.ctc_loss(
            logits_BFV.float().log_softmax(-1).transpose(0, 1),
            tokens_BU,
            frame_lengths_B,
            token_lengths_B,
            blank=BLANK_ID,
            reduction="none",
            zero_infinity=True,
        )
