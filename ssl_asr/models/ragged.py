"""Frames of utterances of unequal lengths, without padding, and attention over them.

    padded   h_BFD   x x x .          packed   h_ND   x x x y y z z z z
                     y y . .                          |     |   |
                     z z z z

Linear layers, norms and activations compute each row by itself, so in the packed layout they compute no padding.
Attention is computed for each utterance: by kernels for rows of unequal lengths on a GPU, and one utterance after the
other on a CPU. No attention mask is needed, which fast kernels for attention do not take. The kernel for WavLM's bias
is our own, see `ssl_asr.models.relative_kernel`. Where it does not run, GPUs compute this attention in the padded
layout.

A batch of equal lengths keeps its padded layout, which has no padding then. So does a batch that is traced for ONNX,
whose graph must not depend on the lengths; its attention has a mask.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ssl_asr.models.encoder import is_traced, padding_mask
from ssl_asr.models.position_bias import Bias
from ssl_asr.models.transformer import AttentionModule, compute_type, project, split_heads
from ssl_asr.types import on_device


class Frames(Protocol):
    """The layout of a batch in a stack of layers."""

    @property
    def width(self) -> int:
        """Number of frames of the padded layout."""

    @property
    def mask_BF(self) -> Tensor | None:
        """Mask of the padded layout, False at padding. None if there is none."""

    def enter(self, h_BFD: Tensor) -> Tensor:
        """States in this layout."""

    def leave(self, h: Tensor) -> Tensor:
        """Padded states, ``h_BFD``."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias | None = None
    ) -> Tensor:
        """Scaled dot-product attention of each utterance to itself.

        Args:
            q, k, v: States in this layout, features of all heads in the last dimension.
            heads: int, number of heads.
            dropout: float, probability with which an attention weight is set to zero.
            bias: Added to the scores. None for zero.
        """


def dense_attention(
    q_BFD: Tensor,
    k_BFD: Tensor,
    v_BFD: Tensor,
    *,
    heads: int,
    dropout: float,
    bias: Bias | None,
    mask_BF: Tensor | None,
) -> Tensor:
    """Attention of padded rows. ``mask_BF`` is False at padding, or None if there is none."""
    q, k, v = (split_heads(x, heads) for x in (q_BFD, k_BFD, v_BFD))
    if bias is None:
        mask = None if mask_BF is None else mask_BF[:, None, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        mixed = bias.attend(q, k, v, mask_BF=mask_BF, dropout=dropout)
    return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True)
class Dense:
    """The padded layout.

    Attributes:
        width: int, number of frames of each row.
        mask_BF: bool, False at padding; None if there is none.
    """

    width: int
    mask_BF: Tensor | None

    def enter(self, h_BFD: Tensor) -> Tensor:
        """The states as they are."""
        return h_BFD

    def leave(self, h: Tensor) -> Tensor:
        """The states as they are."""
        return h

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias | None = None
    ) -> Tensor:
        """See `Frames`."""
        if q.is_cuda and bias is not None and self.mask_BF is None and not is_traced():
            return self.attend_on_gpu(q, k, v, heads=heads, dropout=dropout, bias=bias)
        return dense_attention(q, k, v, heads=heads, dropout=dropout, bias=bias, mask_BF=self.mask_BF)

    def attend_on_gpu(self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias) -> Tensor:
        """Attention with a bias: by a kernel for rows, whose lengths are equal here, or by torch."""
        batch, frames, _ = q.shape
        offsets = frames * torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        q_ND, k_ND, v_ND = (x.flatten(0, 1) for x in (q, k, v))
        own = bias.moved(lambda x: x.flatten(0, 1))
        mixed = own.attend_rows(q_ND, k_ND, v_ND, offsets, heads=heads, longest=frames, dropout=dropout)
        if mixed is not None:
            return mixed.view(batch, frames, -1)
        return dense_attention(q, k, v, heads=heads, dropout=dropout, bias=bias, mask_BF=None)


@dataclass(frozen=True, slots=True)
class Packed:
    """The layout without padding.

    Attributes:
        lengths: list of int, number of frames of each utterance.
        width: int, number of frames of the padded layout.
        mask_BF: bool, False at padding; None if there is none.
        rows_N: int64 on the device, place of each frame in the flattened padded layout.
        offsets: int32 on the device, shape (batch + 1,), place of the first frame of each utterance, and of the end.
    """

    lengths: list[int]
    width: int
    mask_BF: Tensor | None
    rows_N: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, lengths_B: Tensor, width: int, device: torch.device) -> "Packed":
        """The layout of a batch with these lengths (int64 on the CPU)."""
        places_BF = torch.arange(len(lengths_B) * width).view(-1, width)
        rows_N = places_BF[torch.arange(width) < lengths_B[:, None]]
        offsets = functional.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
        mask_BF = padding_mask(lengths_B, width, device)
        return cls(lengths_B.tolist(), width, mask_BF, on_device(rows_N, device), on_device(offsets, device))

    def enter(self, h_BFD: Tensor) -> Tensor:
        """Removes the padding."""
        return h_BFD.flatten(0, 1).index_select(0, self.rows_N)

    def leave(self, h: Tensor) -> Tensor:
        """Puts zeros into the padding."""
        flat = h.new_zeros(len(self.lengths) * self.width, h.shape[-1]).index_copy(0, self.rows_N, h)
        return flat.view(len(self.lengths), self.width, -1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias | None = None
    ) -> Tensor:
        """See `Frames`."""
        if not q.is_cuda:
            return self.attend_in_turn(q, k, v, heads=heads, dropout=dropout, bias=bias)
        if bias is None:
            return self.attend_at_once(q, k, v, heads=heads, dropout=dropout)
        longest = max(self.lengths)
        mixed = bias.attend_rows(q, k, v, self.offsets, heads=heads, longest=longest, dropout=dropout)
        return self.attend_padded(q, k, v, heads=heads, dropout=dropout, bias=bias) if mixed is None else mixed

    def attend_in_turn(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias | None = None
    ) -> Tensor:
        """Attention, one utterance after the other."""
        parts = [torch.split(x[None], self.lengths, dim=1) for x in (q, k, v)]
        biases = [None] * len(self.lengths) if bias is None else bias.split(self.lengths)
        mixed = [
            dense_attention(*states, heads=heads, dropout=dropout, bias=own, mask_BF=None)[0]
            for *states, own in zip(*parts, biases, strict=True)
        ]
        return torch.cat(mixed)

    def attend_padded(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float, bias: Bias | None = None
    ) -> Tensor:
        """Attention in the padded layout, with a mask."""
        own = None if bias is None else bias.moved(self.leave)
        padded = [self.leave(x) for x in (q, k, v)]
        return self.enter(dense_attention(*padded, heads=heads, dropout=dropout, bias=own, mask_BF=self.mask_BF))

    def attend_at_once(self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, dropout: float) -> Tensor:
        """Attention by a kernel for rows of unequal lengths."""
        shortest, longest = min(self.lengths), max(self.lengths)
        nested = [
            torch.nested.nested_tensor_from_jagged(
                x.view(len(x), heads, -1), self.offsets, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)
            for x in (q, k, v)
        ]
        mixed = functional.scaled_dot_product_attention(nested[0], nested[1], nested[2], dropout_p=dropout)
        return mixed.transpose(1, 2).values().flatten(1)


_LEFT_OUT = ((Packed, "attend", Packed.attend), (Dense, "attend_on_gpu", Dense.attend_on_gpu))


def leave_out_of_graphs() -> None:
    """Makes compilers call the attention of packed rows, and Triton kernels, as they are.

    The sizes of their parts differ from batch to batch, so they would be compiled again for each batch. Called before
    layers are compiled, because importing the compiler takes seconds.
    """
    for layout, name, method in _LEFT_OUT:
        setattr(layout, name, torch.compiler.disable(method))  # type: ignore[no-untyped-call]


def frames_of(lengths_B: Tensor, width: int, device: torch.device) -> Frames:
    """The layout for a batch: dense without padding or while it is traced, else packed.

    Args:
        lengths_B: int64 on the CPU, number of frames of each utterance.
        width: int, number of frames of the padded layout.
        device: torch.device, device of the states.
    """
    if is_traced() or bool((lengths_B >= width).all()):
        return Dense(width, padding_mask(lengths_B, width, device))
    return Packed.of(lengths_B, width, device)


def self_attention(attention: AttentionModule, x: Tensor, frames: Frames, bias: Bias | None = None) -> Tensor:
    """Multi-head attention of each utterance to itself.

    Args:
        attention: AttentionModule, gives the projections.
        x: Tensor, states in the layout of ``frames``.
        frames: Frames, the layout.
        bias: See `Frames.attend`.
    """
    # One cast for queries, keys and values. Autocast would make three.
    out: Any = attention.out_proj
    x = x.to(compute_type(x, out.weight))
    q, k, v = (project(layer, x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    dropout = attention.dropout if attention.training else 0.0
    return project(out, frames.attend(q, k, v, heads=attention.num_heads, dropout=dropout, bias=bias))
