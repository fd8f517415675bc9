"""Floating-point operations of training, for the utilization of an accelerator (MFU, Chowdhery et al., 2022).

The operations of a forward and backward pass over an utterance of ``s`` seconds and ``u`` target tokens are

    f(s, u) = a + b s + c s² + d u + e u² + g s u

since layers are linear in positions and attention is quadratic. The six coefficients are found by counting the
operations of six short utterances with torch's `FlopCounterMode`, so that every family of models, frozen layers and
adapters are counted as they run. An update counts the real seconds and tokens of its utterances: padding is no use.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from ssl_asr.data.dataset import silence
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Batch, Seconds, Utterance

# Seconds and tokens of the utterances whose operations are counted.
_COUNTED = ((1.0, 4), (3.0, 4), (6.0, 4), (1.0, 32), (1.0, 64), (6.0, 64))
_TERA = 1e12
# Dense peak of known cards in TFLOP/s, from their data sheets: bf16 and fp16, TF32, and fp32 without tensor cores.
# The first name that is part of a device's name counts.
_PEAKS = {
    "B200": (2250.0, 1125.0, 75.0),
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100 NVL": (835.0, 417.5, 60.0),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A10G": (70.0, 35.0, 31.5),
    "A10": (125.0, 62.5, 31.2),
    "L40S": (362.0, 183.0, 91.6),
    "L40": (181.0, 90.5, 90.5),
    "L4": (121.0, 60.0, 30.3),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
    "V100": (125.0, 15.7, 15.7),
    "T4": (65.0, 8.1, 8.1),
}


def peak_flops(device: str, precision: str, *, tf32: bool) -> float | None:
    """Floating-point operations per second that a card can make, or None if it is unknown.

    Args:
        device: Name of the card, as torch gives it.
        precision: Lightning's precision.
        tf32: Whether float32 matrix products use TF32.
    """
    peaks = next((peaks for name, peaks in _PEAKS.items() if name in device), None)
    if peaks is None:
        return None
    place = 0 if "16" in precision else 1 if tf32 else 2
    return peaks[place] * _TERA


class TrainingFlops:
    """Floating-point operations of utterances in training.

    Args:
        module: The model, whose gradients and random states are not changed.
        utterance: Any utterance of the training data.
    """

    def __init__(self, module: ASRModule, utterance: Utterance) -> None:
        limit = module.speech_encoder.max_s or np.inf
        points = [(min(seconds, limit), tokens) for seconds, tokens in _COUNTED]
        counts = [count_flops(module, _silent(module, utterance, *point)) for point in points]
        terms = _terms(np.array([s for s, _ in points]), np.array([u for _, u in points], dtype=np.float64))
        self._coefficients, *_ = np.linalg.lstsq(terms, np.array(counts, dtype=np.float64), rcond=None)

    def of(self, seconds: Sequence[Seconds], tokens: Sequence[int]) -> float:
        """The operations of utterances, from their lengths in seconds and their numbers of target tokens."""
        terms = _terms(np.asarray(seconds, dtype=np.float64), np.asarray(tokens, dtype=np.float64))
        return float((terms @ self._coefficients).sum())


def _terms(seconds_N: NDArray[np.float64], tokens_N: NDArray[np.float64]) -> NDArray[np.float64]:
    ones_N = np.ones_like(seconds_N)
    return np.stack([ones_N, seconds_N, seconds_N**2, tokens_N, tokens_N**2, seconds_N * tokens_N], axis=1)


def _silent(module: ASRModule, utterance: Utterance, seconds: Seconds, tokens: int) -> Batch:
    """A batch of one utterance of silence with a number of target tokens."""
    batch = silence(replace(utterance, duration=seconds, weight=1.0), module.tokenizer)
    own_U = batch.tokens_BU[0]
    repeated_BU = own_U.repeat(tokens // len(own_U) + 1)[:tokens][None]
    return replace(batch, tokens_BU=repeated_BU, token_lengths_B=torch.tensor([tokens])).to(module.device)


def count_flops(module: ASRModule, batch: Batch) -> int:
    """The operations of a forward and backward pass over a batch, counted by torch in eval mode."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients, was_training = [parameter.grad for parameter in trained], module.training
    for parameter in trained:
        parameter.grad = None
    # What a loss logs belongs to training steps.
    module.log_train = _no_log  # type: ignore[method-assign]
    module.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(module.loss(batch).total)
        return int(counter.get_total_flops())
    finally:
        del module.log_train
        module.train(was_training)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient


def _no_log(name: str, value: torch.Tensor, batch_size: int) -> None:
    """In place of `ASRModule.log_train`."""


def batch_lengths(batch: Batch) -> tuple[list[Seconds], list[int]]:
    """Seconds and target tokens of each utterance of a batch. Both are on the CPU."""
    return (batch.lengths_B / SAMPLE_RATE).tolist(), batch.token_lengths_B.tolist()
