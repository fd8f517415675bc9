"""Which rows of a batch are finished, read on the host without waiting for the device.

A search on a GPU queues the operations of many tokens ahead of the device. Reading a flag would stop the host until the
device has caught up. So the flags are copied to the host in the background, and read at the next check::

    token        1  2  3  4  5  6  7  8  9  10 11 12        every = 4
    copy                  a           b           c         starts after these tokens
    read                              a           b         finished rows of a leave the batch after token 8

A batch shrinks only when enough of it is finished: copying the cache costs as much as several tokens, and a number of
rows that is new needs a CUDA graph of its own. Until then, finished rows are computed as well, so a search must not
change their results.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.decoding.host_copy import HostCopy
from ssl_asr.types import on_device

# Tokens between two checks on a GPU, and the share of the batch to which it shrinks at most.
_GPU_EVERY = 4
_GPU_SHARE = 0.5


class FinishedRows:
    """Finds the rows that a search goes on with.

    Args:
        device: torch.device, device of the flags.
        share: float, the batch shrinks on a CPU if at most this share of its rows is left. On other devices, 0.5.
        every: int, number of tokens between two checks. With 1, flags are read at once. With more, a check returns the
            flags of the check before it. Default: None (1 on a CPU, 4 on other devices).
    """

    def __init__(self, device: torch.device, *, share: float, every: int | None = None) -> None:
        on_cpu = device.type == "cpu"
        self._device, self._share = device, share if on_cpu else _GPU_SHARE
        self._every = (1 if on_cpu else _GPU_EVERY) if every is None else every
        self._tokens = 0
        self._copy: _Copy | None = None

    def left(self, finished_B: Tensor) -> list[int] | None:
        """The rows that the batch shrinks to, empty if all are finished. None if the batch stays as it is.

        Call it once per token. Call `keep` with the rows, unless there are none.

        Args:
            finished_B: bool tensor on the device, whether each row is finished.
        """
        self._tokens += 1
        if self._tokens % self._every:
            return None
        copy: _Copy | None = _Copy(HostCopy.of(finished_B))
        if self._every > 1:
            copy, self._copy = self._copy, copy
        if copy is None:
            return None
        rows, batch = copy.read(), len(finished_B)
        return rows if len(rows) < batch and len(rows) <= self._share * batch else None

    def keep(self, rows: list[int]) -> Tensor:
        """Removes all rows but these from the batch. Returns their indices on the device, int64."""
        if self._copy is not None:
            self._copy.rows = rows
        return on_device(torch.tensor(rows), self._device)


@dataclass(slots=True)
class _Copy:
    """A copy of flags on the host.

    Attributes:
        flags: The copy.
        rows: Rows of the copy that are still in the batch. None for all rows.
    """

    flags: HostCopy
    rows: list[int] | None = None

    def read(self) -> list[int]:
        """The rows of the batch whose flag is not set."""
        flags: list[bool] = self.flags.read()
        kept = flags if self.rows is None else [flags[row] for row in self.rows]
        return [row for row, flag in enumerate(kept) if not flag]
