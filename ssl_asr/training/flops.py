"""Floating-point operations of training, for the utilization of an accelerator (MFU, Chowdhery et al., 2022).

The operations of a forward and backward pass over an utterance of ``s`` seconds and ``u`` target tokens are

    f(s, u) = a + b s + c s² + d u + e u² + g s u

since layers are linear in positions and attention is quadratic. The six coefficients are found by counting the
operations of six short utterances with torch's `FlopCounterMode`, so that every family of models, frozen layers and
adapters are counted as they run. An update counts the real seconds and tokens of its utterances: padding is no use.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import shown
from ssl_asr.training.module import ASRModule
from ssl_asr.training.probing import probing, silent_batch
from ssl_asr.types import SAMPLE_RATE, Batch, Seconds, Utterance

# Seconds and tokens of the utterances whose operations are counted.
_COUNTED = ((1.0, 4), (3.0, 4), (6.0, 4), (1.0, 32), (1.0, 64), (6.0, 64))
_TERA = 1e12


class Card(NamedTuple):
    """A kind of GPU, from its data sheet: dense peaks in TFLOP/s, and memory.

    Attributes:
        half: bf16 and fp16.
        tf32: TF32.
        single: fp32 without tensor cores.
        memory_gb: Memory in GB. The smallest size, if there are several and the name has none.
    """

    half: float
    tf32: float
    single: float
    memory_gb: float

    def flops(self, precision: str, *, tf32: bool) -> float:
        """Floating-point operations per second in a precision of Lightning. ``tf32`` says whether float32 uses TF32."""
        return _TERA * (self.half if "16" in precision else self.tf32 if tf32 else self.single)


# The first name that is part of a device's name counts. In names of devices, spaces may be missing.
CARDS = {
    "B200": Card(2250.0, 1125.0, 75.0, 180.0),
    "H200": Card(989.4, 494.7, 66.9, 141.0),
    "H100 PCIe": Card(756.0, 378.0, 51.2, 80.0),
    "H100 NVL": Card(835.0, 417.5, 60.0, 94.0),
    "H100": Card(989.4, 494.7, 66.9, 80.0),
    "A100 80GB": Card(312.0, 156.0, 19.5, 80.0),
    "A100": Card(312.0, 156.0, 19.5, 40.0),
    "A40": Card(149.7, 74.8, 37.4, 48.0),
    "A10G": Card(70.0, 35.0, 31.5, 24.0),
    "A10": Card(125.0, 62.5, 31.2, 24.0),
    "L40S": Card(362.0, 183.0, 91.6, 48.0),
    "L40": Card(181.0, 90.5, 90.5, 48.0),
    "L4": Card(121.0, 60.0, 30.3, 24.0),
    "RTX 6000 Ada": Card(364.2, 182.1, 91.1, 48.0),
    "RTX A6000": Card(154.8, 77.4, 38.7, 48.0),
    "RTX 4090": Card(165.2, 82.6, 82.6, 24.0),
    "RTX 3090": Card(71.0, 35.6, 35.6, 24.0),
    "V100": Card(125.0, 15.7, 15.7, 16.0),
    "T4": Card(65.0, 8.1, 8.1, 16.0),
}


def card_named(device: str) -> Card | None:
    """The card with a name such as ``NVIDIA A100-SXM4-40GB``, ``RTX 4090`` or ``rtx4090``. None if it is unknown."""
    patterns = {r"[\s_-]*".join(name.split()) + r"(?!\d)": card for name, card in CARDS.items()}
    return next((card for pattern, card in patterns.items() if re.search(pattern, device, re.IGNORECASE)), None)


def peak_flops(device: str, precision: str, *, tf32: bool) -> float | None:
    """Floating-point operations per second that a card can make, or None if it is unknown.

    Args:
        device: Name of the card, as torch gives it.
        precision: Lightning's precision.
        tf32: Whether float32 matrix products use TF32.
    """
    card = card_named(device)
    return None if card is None else card.flops(precision, tf32=tf32)


def planned_card(gpu: str | float) -> Card:
    """The card with a name; or one with a memory in GB, whose peaks are NaN.

    Raises:
        ConfigError: There is no card with this name.
    """
    card = card_named(gpu) if isinstance(gpu, str) else Card(math.nan, math.nan, math.nan, gpu)
    if card is None:
        remedy = f"give its memory in GB, such as gpu=24, or one of {', '.join(CARDS)}"
        raise ConfigError("gpu", f"is {shown(gpu)}, whose memory is unknown", remedy)
    return card


class TrainingFlops:
    """Floating-point operations of utterances in training.

    Args:
        module: The model, whose gradients and random states are not changed.
        utterance: Any utterance of the training data.
    """

    def __init__(self, module: ASRModule, utterance: Utterance) -> None:
        limit = module.speech_encoder.max_s or np.inf
        points = [(min(seconds, limit), tokens) for seconds, tokens in _COUNTED]
        counts = [count_flops(module, silent_batch(module, utterance, [s], [u])) for s, u in points]
        terms = _terms(np.array([s for s, _ in points]), np.array([u for _, u in points], dtype=np.float64))
        self._coefficients, *_ = np.linalg.lstsq(terms, np.array(counts, dtype=np.float64), rcond=None)

    def of(self, seconds: Sequence[Seconds], tokens: Sequence[int]) -> float:
        """The operations of utterances, from their lengths in seconds and their numbers of target tokens."""
        terms = _terms(np.asarray(seconds, dtype=np.float64), np.asarray(tokens, dtype=np.float64))
        return float((terms @ self._coefficients).sum())


def _terms(seconds_N: NDArray[np.float64], tokens_N: NDArray[np.float64]) -> NDArray[np.float64]:
    ones_N = np.ones_like(seconds_N)
    return np.stack([ones_N, seconds_N, seconds_N**2, tokens_N, tokens_N**2, seconds_N * tokens_N], axis=1)


def count_flops(module: ASRModule, batch: Batch) -> int:
    """The operations of a forward and backward pass over a batch, counted by torch in eval mode."""
    with probing(module), FlopCounterMode(display=False) as counter:
        module.eval()
        torch.autograd.backward(module.loss(batch).total)
    return int(counter.get_total_flops())


def batch_lengths(batch: Batch) -> tuple[list[Seconds], list[int]]:
    """Seconds and target tokens of each utterance of a batch. Both are on the CPU."""
    return (batch.lengths_B / SAMPLE_RATE).tolist(), batch.token_lengths_B.tolist()
