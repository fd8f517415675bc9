"""Copies from the CPU to a device."""

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor that is on the CPU to a device, without waiting for the device.

    A copy from pageable memory to a GPU waits for the work before it, so the tensor is copied to pinned memory first.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
