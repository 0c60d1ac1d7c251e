"""What a batch has besides pixels goes to the device in one copy: ten small ones would each cost a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGN = 16  # bytes


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of CPU tensors, of any shapes and dtypes, on `device`: parts of one buffer, each contiguous.

    To a GPU that is one transfer from pinned memory, which nobody waits for; PyTorch does not give the pinned buffer
    to anyone else before it is over.
    """
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGN) * _ALIGN
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def parts(buffer: Tensor) -> list[Tensor]:
        return [
            buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, tensors)
        ]

    for part, tensor in zip(parts(packed), tensors):
        part.copy_(tensor)
    return parts(packed.to(device, non_blocking=True))
