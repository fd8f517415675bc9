"""Greedy CTC decoding: the best label of each frame, repeats merged, blanks dropped."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CtcGreedy:
    """The ``ctc_greedy`` decoder; it has no settings."""


def collapse(path: list[int], blank: int) -> list[int]:
    """The labels of a CTC path: repeats merged first, then blanks dropped, so that LL needs a blank between.

    Example:
        >>> collapse([1, 1, 0, 1, 2, 2], blank=0)
        [1, 1, 2]
    """
    merged = (label for label, _ in groupby(path))
    return [label for label in merged if label != blank]


def greedy_paths(log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> tuple[list[list[int]], list[float]]:
    """The best path of each utterance over its own frames, and its mean log-probability a frame.

    One transfer from the device for the batch. ``frame_lengths_B`` is int64 on the CPU.
    """
    best = log_probs_BFV.max(dim=-1)
    # Labels are exact in float32 up to 2**24; not every accelerator has float64.
    packed = torch.stack([best.values.float(), best.indices.float()]).cpu()
    paths, scores = [], []
    for row, frames in enumerate(frame_lengths_B.tolist()):
        paths.append([int(label) for label in packed[1, row, :frames].tolist()])
        scores.append(float(packed[0, row, :frames].mean()) if frames else 0.0)
    return paths, scores
