"""The key-value cache of a transformer decoder.

A step grows with the text: it reads the columns that are filled. A step of fixed shapes reads ``width`` columns and
masks the ones that are not filled, so the same operations run for every token. Its position, tokens and beams are in
tensors at fixed addresses, as a CUDA graph needs them::

    column      0  1  2  3  4  5  6  7        width = 8, position = 4
    cache       k  k  k  k  k  .  .  .        column 4 is written by this step
    mask        1  1  1  1  1  0  0  0
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 64
"""Columns by which the width of steps of fixed shapes grows."""

CACHES = ("self_k", "self_v", "cross_k", "cross_v")
"""Attributes of `DecodingState` with a tensor for each layer."""


def beam_rows(rows: Tensor, beams: int) -> Tensor:
    """Returns the rows of all beams of these utterances."""
    return (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()


@dataclass(slots=True)
class FixedStep:
    """What a step of fixed shapes reads, besides the cache.

    Attributes:
        width: int, number of columns of the cache that the step reads.
        tokens_N1: int64 tensor of shape (batch * beams, 1), the tokens to append.
        position_1: int64 tensor of shape (1,), the column that the step writes. The step adds 1.
        columns_W: int64 tensor of shape (width,), 0 to ``width - 1``.
        parents_N: int64 tensor of shape (batch * beams,), the row that each beam continues. The step replaces it with
            ``rows_N``. None with one beam.
        rows_N: int64 tensor of shape (batch * beams,), each row itself.
    """

    width: int
    tokens_N1: Tensor
    position_1: Tensor
    columns_W: Tensor
    parents_N: Tensor | None
    rows_N: Tensor


@dataclass(slots=True, weakref_slot=True)
class DecodingState:
    """Key-value cache of a decoding run.

    Self-attention: preallocated, with one row per beam; the beams of an utterance are consecutive rows.
    Cross-attention: computed once, with one row per utterance; the beams are queries of that row, so nothing is copied.

    Attributes:
        self_k, self_v: For each layer, tensor of shape (batch * beams, heads, max_tokens, features).
        cross_k, cross_v: For each layer, tensor of shape (batch, heads, frames, features).
        cross_mask: Bool tensor of shape (batch, 1, 1, frames), False at padding; None without padding.
        filled: int, number of tokens in the cache.
        beams: int, number of beams per utterance.
        watch: bool, store ``weights_NF`` at each step.
        weights_NF: Tensor of shape (batch * beams, frames), cross-attention weights of the last layer at the last step,
            averaged over heads; None if ``watch`` is False.
        fixed: FixedStep, see `fix`. None while steps grow.
    """

    self_k: list[Tensor]
    self_v: list[Tensor]
    cross_k: list[Tensor]
    cross_v: list[Tensor]
    cross_mask: Tensor | None
    filled: int = 0
    beams: int = 1
    watch: bool = False
    weights_NF: Tensor | None = None
    fixed: FixedStep | None = None

    def keep(self, rows: Tensor) -> None:
        """Keeps these utterances with all their beams and removes the others.

        Args:
            rows: int64 tensor on the device, indices of utterances.
        """
        self.grow()
        for name in ("cross_k", "cross_v"):
            setattr(self, name, [tensor[rows] for tensor in getattr(self, name)])
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask[rows]
        own = beam_rows(rows, self.beams)
        self.self_k, self.self_v = ([tensor[own] for tensor in cache] for cache in (self.self_k, self.self_v))

    def spread(self, beams: int) -> None:
        """Repeats the single beam of each utterance ``beams`` times."""
        assert self.beams == 1
        self.grow()
        self.beams = beams
        for name in ("self_k", "self_v"):
            setattr(self, name, [tensor.repeat_interleave(beams, dim=0) for tensor in getattr(self, name)])

    def select(self, rows: Tensor) -> None:
        """Replaces each beam by another beam of the same utterance.

        Args:
            rows: int64 tensor of shape (batch * beams,), the row that each beam continues.
        """
        if self.beams == 1:
            return
        if self.fixed is None:
            self._select(rows, self.filled)
        else:
            assert self.fixed.parents_N is not None
            self.fixed.parents_N.copy_(rows)

    def _select(self, rows: Tensor, columns: int) -> None:
        for cache in (*self.self_k, *self.self_v):
            cache[:, :, :columns] = cache[:, :, :columns].index_select(0, rows)

    def fix(self) -> FixedStep:
        """Starts steps of fixed shapes, with room for up to ``WIDTH`` more tokens."""
        self.grow()
        cache = self.self_k[0]
        rows, device = len(cache), cache.device
        rows_N = torch.arange(rows, device=device)
        width = min(cache.shape[2], (self.filled // WIDTH + 1) * WIDTH)
        self.fixed = FixedStep(
            width=width,
            tokens_N1=torch.zeros(rows, 1, dtype=torch.int64, device=device),
            position_1=torch.full((1,), self.filled, device=device),
            columns_W=torch.arange(width, device=device),
            parents_N=None if self.beams == 1 else rows_N.clone(),
            rows_N=rows_N,
        )
        return self.fixed

    def reorder(self) -> None:
        """Moves the columns of a step of fixed shapes to the parents of the beams."""
        fixed = self.fixed
        if fixed is not None and fixed.parents_N is not None:
            self._select(fixed.parents_N, fixed.width)
            fixed.parents_N.copy_(fixed.rows_N)

    def grow(self) -> None:
        """Ends steps of fixed shapes."""
        self.reorder()
        self.fixed = None

    def leave(self) -> None:
        """Ends steps of fixed shapes and copies the cache, which another batch will overwrite."""
        self.grow()
        for name in CACHES:
            setattr(self, name, [tensor.clone() for tensor in getattr(self, name)])
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask.clone()
