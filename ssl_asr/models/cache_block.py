"""Memory of decoding steps at addresses that stay the same from batch to batch.

A CUDA graph reads and writes the addresses it was recorded with. So that a graph serves later batches, each batch moves
its cache to the same block of memory, and its shape is rounded up::

    batch    11 utterances, 433 frames, room for 60 tokens
    shape    16 utterances, 448 frames, 64 columns          rows 11 to 15 and frames 433 to 447 are padding
    block    | cross-attention of all layers | self-attention of all layers |    smaller shapes use less of it
"""

import weakref
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ssl_asr.models import decoding_state
from ssl_asr.models.decoding_state import CACHES, DecodingState, FixedStep

# Frames are rounded up to a multiple of this. Masks of other widths are copied by attention kernels.
_FRAMES = 64
# The block takes at most this share of a GPU's memory. Batches with larger caches have steps that grow.
_SHARE = 0.25
# Room for larger batches later: each time the block grows, its graphs are recorded again.
_HEADROOM = 1.25


@dataclass(frozen=True, slots=True)
class StepShape:
    """Shape of the steps of a batch, rounded up.

    Attributes:
        rows: int, number of utterances.
        beams: int, number of beams per utterance.
        frames: int, number of frames of the cross-attention.
        columns: int, number of tokens that the cache has room for.
        width: int, number of columns that a step reads.
        masked: bool, the cross-attention has a mask.
    """

    rows: int
    beams: int
    frames: int
    columns: int
    width: int
    masked: bool

    @classmethod
    def of(cls, state: DecodingState) -> "StepShape":
        """Returns the shape of a batch."""
        rows, _, frames, _ = state.cross_k[0].shape
        # Several utterances of one length are windows of fixed length, which come again and need no mask.
        exact = state.cross_mask is None and rows > 1
        return cls(
            rows=_round_rows(rows),
            beams=state.beams,
            frames=frames if exact else _round_up(frames, _FRAMES),
            columns=_round_up(state.self_k[0].shape[2], decoding_state.WIDTH),
            width=(state.filled // decoding_state.WIDTH + 1) * decoding_state.WIDTH,
            masked=not exact,
        )


class CacheBlock:
    """A block of memory for the cache of one batch at a time."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._owner: weakref.ref[DecodingState] | None = None

    def holds(self, state: DecodingState) -> bool:
        """Whether the block may be as large as this batch needs."""
        device = state.self_k[0].device
        if device.type != "cuda":
            return True
        needed = _elements(state, StepShape.of(state)) * state.self_k[0].element_size()
        return _HEADROOM * needed <= _SHARE * torch.cuda.get_device_properties(device).total_memory

    def has_place(self, state: DecodingState, shape: StepShape) -> bool:
        """Whether the block is large enough. Otherwise, `views` replaces it, and all earlier views are invalid."""
        block, cache = self._block, state.self_k[0]
        return (
            block is not None
            and block.device == cache.device
            and block.dtype == cache.dtype
            and len(block) >= _elements(state, shape)
        )

    def is_owner(self, state: DecodingState) -> bool:
        """Whether this batch was moved to the block last."""
        return self._owner is not None and self._owner() is state

    def views(self, state: DecodingState, shape: StepShape) -> DecodingState:
        """Returns the cache of a shape in the block, with arbitrary contents and ``fixed``."""
        layers = len(state.self_k)
        if not self.has_place(state, shape):
            self._free(state)
            self._block = None
            size = round(_HEADROOM * _elements(state, shape))
            # A tensor of inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self._block = state.self_k[0].new_zeros(size)
        assert self._block is not None
        own, cross = _shapes(state, shape)
        parts = [cross] * 2 * layers + [own] * 2 * layers
        with torch.inference_mode(False):
            flat = torch.split(self._block[: _elements(state, shape)], [prod(part) for part in parts])
            tensors = [one.view(part) for one, part in zip(flat, parts, strict=True)]
            mask = self._block.new_ones((shape.rows, 1, 1, shape.frames), dtype=torch.bool) if shape.masked else None
            place = DecodingState(
                cross_k=tensors[:layers],
                cross_v=tensors[layers : 2 * layers],
                self_k=tensors[2 * layers : 3 * layers],
                self_v=tensors[3 * layers :],
                cross_mask=mask,
                filled=state.filled,
                beams=shape.beams,
            )
            place.fix()
        return place

    def move(self, state: DecodingState, place: DecodingState) -> FixedStep:
        """Moves the cache of a batch to its place in the block. Steps of ``place`` are then steps of the batch.

        Returns:
            ``state.fixed``, the rows of ``place.fixed`` that belong to the batch.
        """
        self._free(state)
        self._owner = weakref.ref(state)
        if self._overlaps(state, place):
            state.leave()
        frames, rows = state.cross_k[0].shape[2], len(state.cross_k[0])
        for name in CACHES:
            pairs = zip(getattr(state, name), getattr(place, name), strict=True)
            setattr(state, name, [_moved(tensor, to, dim=2) for tensor, to in pairs])
        if place.cross_mask is not None:
            if state.cross_mask is None:
                state.cross_mask = place.cross_mask.new_ones((rows, 1, 1, frames))
            state.cross_mask = _moved(state.cross_mask, place.cross_mask, dim=3)
        fixed, lanes = place.fixed, rows * state.beams
        assert fixed is not None
        fixed.position_1.fill_(state.filled)
        if fixed.parents_N is not None:
            fixed.parents_N.copy_(fixed.rows_N)
        state.fixed = FixedStep(
            width=fixed.width,
            tokens_N1=fixed.tokens_N1[:lanes],
            position_1=fixed.position_1,
            columns_W=fixed.columns_W,
            parents_N=None if fixed.parents_N is None else fixed.parents_N[:lanes],
            rows_N=fixed.rows_N[:lanes],
        )
        return state.fixed

    def _overlaps(self, state: DecodingState, place: DecodingState) -> bool:
        """Whether a tensor of the batch is in the block already, but at another place."""
        assert self._block is not None
        block = self._block.untyped_storage().data_ptr()
        return any(
            tensor.untyped_storage().data_ptr() == block and not _is_at(tensor, to)
            for name in CACHES
            for tensor, to in zip(getattr(state, name), getattr(place, name), strict=True)
        )

    def _free(self, state: DecodingState) -> None:
        """Copies the cache of another batch out of the block, if its search goes on."""
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner is not state:
            owner.leave()
        if owner is not state:
            self._owner = None


def _moved(tensor: Tensor, to: Tensor, dim: int) -> Tensor:
    """Copies a tensor to the first rows of another one, and zeros what is beyond its length in ``dim``.

    Zeros, because masked values count as 0 times the value, which is not 0 for NaN.
    """
    rows, length = tensor.shape[0], tensor.shape[dim]
    place = to[:rows]
    if not _is_at(tensor, to):
        place.narrow(dim, 0, length).copy_(tensor)
        place.narrow(dim, length, place.shape[dim] - length).zero_()
    return place


def _is_at(tensor: Tensor, to: Tensor) -> bool:
    return tensor.data_ptr() == to.data_ptr() and tensor.stride() == to.stride()


def _shapes(state: DecodingState, shape: StepShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of keys in a layer's self-attention and cross-attention."""
    _, heads, _, dim = state.cross_k[0].shape
    return (shape.rows * shape.beams, heads, shape.columns, dim), (shape.rows, heads, shape.frames, dim)


def _elements(state: DecodingState, shape: StepShape) -> int:
    """The number of elements of the cache, keys and values of all layers."""
    return 2 * len(state.self_k) * sum(map(prod, _shapes(state, shape)))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _round_rows(rows: int) -> int:
    """1, 2, 4, 8, 16, 24, 32, 40, …, 64, 80, …: at most a quarter of a batch of 25 or more is padding."""
    power = 1 << (rows - 1).bit_length()
    return power if rows <= 8 else _round_up(rows, max(8, power // 8))
