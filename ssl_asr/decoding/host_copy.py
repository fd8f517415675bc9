"""Reading numbers of a device without waiting for the operations that were queued after them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A copy of a tensor on the CPU that is made in the background, so that the host does not wait for the device.

    Attributes:
        tensor: Tensor on the CPU, complete after ``event``.
        event: torch.cuda.Event, or None if the copy is complete.
    """

    tensor: Tensor
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, tensor: Tensor) -> "HostCopy":
        """Starts to copy a tensor."""
        if tensor.device.type != "cuda":
            return cls(tensor.to("cpu", copy=True), None)
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
        return cls(copy, torch.cuda.current_stream(tensor.device).record_event())

    def read(self) -> list[Any]:
        """Returns the values, after waiting for the copy."""
        if self.event is not None:
            self.event.synchronize()
        values: list[Any] = self.tensor.tolist()
        return values
