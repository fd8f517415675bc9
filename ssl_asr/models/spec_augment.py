"""SpecAugment: spans of time and of features hidden from the encoder in training.

Spans are drawn on the CPU, where the lengths are, and sent to the device without waiting for it. Each row
draws for itself, so what hides in one has nothing to do with the rows beside it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def span_mask(lengths_B: Tensor, width: int, *, prob: float, span: int) -> Tensor:
    """True where a row is hidden, shape (B, width), on the CPU.

    ``prob`` is in fairseq's unit (and transformers'): a row of ``n`` gets ``prob * n / span`` spans, rounded
    up or down at random, at different starts. Spans may overlap, so less than ``prob`` is hidden: 0.5 hides
    some 39 %, 0.65 some 48 %. A row no longer than a span is left whole.

    Args:
        lengths_B: int64, on the CPU.
        width: of the mask, at least the longest row.
        prob: the share that spans would cover if none overlapped.
        span: their length.
    """
    starts_B = (lengths_B - span).clamp(min=0)
    wanted_B = (prob * lengths_B / span + torch.rand(len(lengths_B))).floor().long()
    count_B = torch.minimum(wanted_B, starts_B)
    keys_BW = torch.rand(len(lengths_B), width)
    keys_BW = keys_BW.masked_fill(torch.arange(width)[None] >= starts_B[:, None], 2.0)
    rank_BW = keys_BW.argsort(dim=1).argsort(dim=1)
    begun_BW = (rank_BW < count_B[:, None]).long().cumsum(1)
    ended_BW = torch.nn.functional.pad(begun_BW, (span, 0))[:, :width]
    return begun_BW > ended_BW


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """The ``spec_augment`` options: hide spans of frames, and spans of features in all frames of an utterance.

    For wav2vec 2.0 and its kin frames are of 20 ms, features are those of the first transformer layer's input,
    a hidden frame becomes the learnt mask vector and a hidden feature zero (Baevski et al., 2020). For Whisper
    frames are of 10 ms, features are mel bands, and what is hidden is zero, which log-mel features centre on.
    An encoder that is frozen whole is never masked.

    Attributes:
        time_prob: share of the frames that spans would cover if none overlapped; see `span_mask`.
        time_span: frames a span.
        feature_prob, feature_span: the same, of features.
    """

    time_prob: float
    time_span: int
    feature_prob: float
    feature_span: int

    def time_mask(self, lengths_B: Tensor, width: int) -> Tensor | None:
        """Hidden frames, shape (B, width), on the CPU; None where the option is 0."""
        if self.time_prob == 0:
            return None
        return span_mask(lengths_B, width, prob=self.time_prob, span=self.time_span)

    def feature_mask(self, batch: int, features: int) -> Tensor | None:
        """Hidden features, shape (batch, features), on the CPU; None where the option is 0."""
        if self.feature_prob == 0:
            return None
        lengths_B = torch.full((batch,), features)
        return span_mask(lengths_B, features, prob=self.feature_prob, span=self.feature_span)


@dataclass(frozen=True, kw_only=True)
class NoAugment:
    """The ``augment=none`` option: the encoder sees everything."""


def share(mask_BF: Tensor | None, lengths_B: Tensor) -> float:
    """The share of all frames that a mask hides."""
    return 0.0 if mask_BF is None else float(mask_BF.sum() / lengths_B.sum().clamp(min=1))
