"""Biases of attention by the distance between frames, in any layout of a batch (see `ssl_asr.models.ragged`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssl_asr.models.relative_attention import distance_attention, relative_attention, shortened
from ssl_asr.models.relative_check import has_kernel
from ssl_asr.models.transformer import split_heads


class Bias(Protocol):
    """A bias that is added to the scores of attention."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Bias":
        """The bias in another layout.

        Args:
            move: Moves states to the other layout.
        """

    def split(self, lengths: list[int]) -> list["Bias"]:
        """The bias of each utterance, a batch of one, from packed rows.

        Args:
            lengths: list of int, number of frames of each utterance.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask_BF: Tensor | None, dropout: float) -> Tensor:
        """Attention of padded rows with this bias, shape (batch, heads, frames, features).

        Args:
            q, k, v: Tensors of shape (batch, heads, frames, features).
            mask_BF: bool, False at padding; None if there is none.
            dropout: float, probability with which an attention weight is set to zero.
        """

    def attend_rows(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, heads: int, longest: int, dropout: float
    ) -> Tensor | None:
        """Attention of packed rows with this bias by a kernel, or None where there is no kernel.

        Args:
            q, k, v: Tensors of shape (rows, heads * features).
            offsets: int32 on the device, shape (batch + 1,), first row of each utterance, and the number of rows.
            heads: int, number of heads.
            longest: int, number of frames of the longest utterance.
            dropout: float, probability with which an attention weight is set to zero.
        """


@dataclass(frozen=True, slots=True)
class GatedBias:
    """WavLM's position bias: a learned bias of each distance, scaled by a gate of the query.

    Attributes:
        gate: Tensor in the layout of the states, with one factor for each head in the last dimension.
        relative_HR: Tensor of shape (heads, 2 * width - 1), bias of the distances ``1 - width`` to ``width - 1``.
    """

    gate: Tensor
    relative_HR: Tensor

    def moved(self, move: Callable[[Tensor], Tensor]) -> "GatedBias":
        """See `Bias`."""
        return GatedBias(move(self.gate), self.relative_HR)

    def split(self, lengths: list[int]) -> list[Bias]:
        """See `Bias`."""
        parts = torch.split(self.gate[None], lengths, dim=1)
        return [
            GatedBias(part, shortened(self.relative_HR, frames)) for part, frames in zip(parts, lengths, strict=True)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask_BF: Tensor | None, dropout: float) -> Tensor:
        """See `Bias`."""
        return relative_attention(
            q, k, v, self.gate.transpose(1, 2), self.relative_HR, mask_BT=mask_BF, dropout=dropout
        )

    def attend_rows(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, heads: int, longest: int, dropout: float
    ) -> Tensor | None:
        """See `Bias`."""
        if not has_kernel(q.device, q.dtype, q.shape[-1] // heads):
            return None
        from ssl_asr.models.relative_kernel import packed_attention

        return packed_attention(q, k, v, self.gate, self.relative_HR, offsets, longest=longest, dropout=dropout)


@dataclass(frozen=True, slots=True)
class DistanceBias:
    """A bias that the query gives to each distance, up to a farthest distance on each side.

    Attributes:
        scores: Tensor in the layout of the states, with ``left + 1 + right`` numbers for each head in the last
            dimension: the bias of the distances ``-left``, for keys before the query, to ``right``.
        left, right: int, farthest distances. Keys beyond have their bias.
    """

    scores: Tensor
    left: int
    right: int

    def moved(self, move: Callable[[Tensor], Tensor]) -> "DistanceBias":
        """See `Bias`."""
        return DistanceBias(move(self.scores), self.left, self.right)

    def split(self, lengths: list[int]) -> list[Bias]:
        """See `Bias`."""
        return [DistanceBias(part, self.left, self.right) for part in torch.split(self.scores[None], lengths, dim=1)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask_BF: Tensor | None, dropout: float) -> Tensor:
        """See `Bias`."""
        scores_BHTR = split_heads(self.scores, q.shape[1])
        return distance_attention(q, k, v, scores_BHTR, self.left, self.right, mask_BT=mask_BF, dropout=dropout)

    def attend_rows(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, heads: int, longest: int, dropout: float
    ) -> Tensor | None:
        """None: there is no kernel for it."""
        return None
