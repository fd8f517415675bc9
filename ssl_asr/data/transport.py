"""How a batch travels from a worker process to the device: in one piece of memory.

::

    worker process                 | pinning thread      | main process          | device
    collate -> Batch -> PackedBatch ---> pin_memory() -----> to(device) -----------> Batch
                        one shared   |   one copy          | one copy, which      | views of the piece,
                        memory file, |                     | the host starts only | samples as float32
                        or the pipe  |                     |                      |

The piece holds padded rows. Without padding, it would be 1 to 2 % smaller, because batches have similar lengths. But
the device would then copy each row by itself: a kernel for each utterance instead of one for the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ssl_asr.data.dataset import Item, collate
from ssl_asr.types import Batch, Notice, Skip, Utterance

# Bytes. Each tensor starts at a multiple of it, which suits the widest loads of CPUs and GPUs.
_ALIGNMENT = 64
# Bytes. A smaller piece takes less CPU time through the pipe than as a shared memory file, whose descriptor needs a new
# connection. Measured for worker and main process together: half for 256 kB and less, as much for 1 MB.
_SMALL = 1 << 19
# Samples of 16-bit audio are multiples of one over this.
_FULL_SCALE = 1 << 15

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tensors of a batch are in its piece: samples, tokens, lengths, and token lengths.

    Attributes:
        sample_type: int16 if every sample of the batch is exactly a 16-bit integer over 32768, otherwise float32.
        waveform_shape, tokens_shape: Shapes of ``waveform_BT`` and ``tokens_BU``.
    """

    sample_type: torch.dtype
    waveform_shape: Shape
    tokens_shape: Shape

    def _parts(self) -> Iterator[tuple[int, int, torch.dtype, Shape]]:
        """First byte, byte after the last, type and shape of each tensor."""
        samples, tokens = (self.sample_type, self.waveform_shape), (torch.int64, self.tokens_shape)
        lengths = torch.int64, self.waveform_shape[:1]
        end = 0
        for dtype, shape in (samples, tokens, lengths, lengths):
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + prod(shape) * dtype.itemsize
            yield start, end, dtype, shape

    def allocate(self) -> Tensor:
        """A piece with room for the tensors, not initialized."""
        *_, (_, size, _, _) = self._parts()
        return torch.empty(size, dtype=torch.uint8)

    def views(self, piece_N: Tensor) -> list[Tensor]:
        """The four tensors, as views of a piece."""
        return [piece_N[start:end].view(dtype).view(shape) for start, end, dtype, shape in self._parts()]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A `Batch` with all its tensors in one piece of memory.

    Attributes:
        piece_N: uint8.
        layout: Where the tensors are.
        utterances, skipped, notices: See `Batch`.
    """

    piece_N: Tensor
    layout: Layout
    utterances: list[Utterance]
    skipped: list[Skip]
    notices: list[Notice]

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Pack a batch that is on the CPU."""
        for sample_type in (torch.int16, torch.float32):
            layout = Layout(sample_type, tuple(batch.waveform_BT.shape), tuple(batch.tokens_BU.shape))
            piece_N = layout.allocate()
            samples_BT, *others = layout.views(piece_N)
            if _write(batch.waveform_BT, samples_BT):
                break
        for view, tensor in zip(others, (batch.tokens_BU, batch.lengths_B, batch.token_lengths_B), strict=True):
            view.copy_(tensor)
        return cls(piece_N, layout, batch.utterances, batch.skipped, batch.notices)

    def __reduce__(self) -> tuple[Any, ...]:
        """How a process sends the batch. torch sends tensors in shared memory, and NumPy arrays through the pipe."""
        piece = self.piece_N.numpy() if self.piece_N.numel() < _SMALL else self.piece_N
        return _received, (piece, self.layout, self.utterances, self.skipped, self.notices)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory. The DataLoader calls this method."""
        return replace(self, piece_N=self.piece_N.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The unpacked batch, with samples and tokens on ``device`` and lengths on the CPU.

        Every tensor is bitwise that of the batch that was packed.
        """
        piece_N = self.piece_N.to(device, non_blocking=non_blocking)
        samples_BT, tokens_BU, lengths_B, token_lengths_B = self.layout.views(self.piece_N)
        if piece_N is not self.piece_N:
            samples_BT, tokens_BU, *_ = self.layout.views(piece_N)
        is_integer = samples_BT.dtype == torch.int16
        return Batch(
            waveform_BT=samples_BT.float().mul_(1 / _FULL_SCALE) if is_integer else samples_BT,
            # Copies, so that a tensor of a few bytes does not keep the piece in memory.
            lengths_B=lengths_B.clone(),
            tokens_BU=tokens_BU.clone(),
            token_lengths_B=token_lengths_B.clone(),
            utterances=self.utterances,
            skipped=self.skipped,
            notices=self.notices,
        )


def packed(found: Sequence[Item]) -> PackedBatch:
    """What `collate` returns, packed. For loaders with worker processes."""
    return PackedBatch.of(collate(found))


def _received(piece: Tensor | np.ndarray, *others: Any) -> PackedBatch:
    """The batch that a process has sent."""
    return PackedBatch(torch.as_tensor(piece), *others)


def _write(waveform_BT: Tensor, samples_BT: Tensor) -> bool:
    """Write a waveform as samples of either type. False if int16 cannot give it back bitwise."""
    if samples_BT.dtype == torch.float32:
        samples_BT.copy_(waveform_BT)
        return True
    # NumPy converts in blocks that fit the cache. Torch would write a whole float32 row first.
    with np.errstate(over="ignore", invalid="ignore"):
        for given_T, written_T in zip(waveform_BT.numpy(), samples_BT.numpy(), strict=True):
            np.multiply(given_T, np.float32(_FULL_SCALE), out=written_T, casting="unsafe")
            restored_T = written_T * np.float32(1 / _FULL_SCALE)
            # Bits are compared, because -0.0 equals 0.0.
            if not np.array_equal(restored_T.view(np.int32), given_T.view(np.int32)):
                return False
    return True
