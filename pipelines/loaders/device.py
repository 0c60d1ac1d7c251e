"""Ways to a GPU: crops on a stream of their own, ahead of the step that wants them; all else of a batch in one copy,
as ten small ones would each cost a launch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class Sent(NamedTuple):
    """Tensors on their way to a GPU."""

    tensors: dict[Any, Tensor]  # there, not to be read before `arrived`
    arrived: Any  # an event


class CopyStream:
    """Copies from pinned memory to a GPU that neither the host nor the stream of the steps waits for.

    `send` may be called in one thread and `receive` in another. `cuda` is `torch.cuda`, or stands for it in a test.
    """

    def __init__(self, device: torch.device, cuda=torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._lent: deque[tuple[Any, Mapping[Any, Tensor]]] = deque()  # what is read by copies that may not be over

    def send(self, tensors: Mapping[Any, Tensor]) -> Sent:
        """Begins to copy. The memory of `tensors`, pinned, is kept from being used again until it has been read, which
        is found out at the next call."""
        with self._cuda.stream(self._stream):
            there = {key: tensor.to(self._device, non_blocking=True) for key, tensor in tensors.items()}
            arrived = self._stream.record_event()
        while self._lent and self._lent[0][0].query():
            self._lent.popleft()
        self._lent.append((arrived, tensors))
        return Sent(there, arrived)

    def write(self, target: Tensor, tensor: Tensor) -> None:
        """Copies into memory of the GPU that no step reads yet, from memory of any kind; waits until that is over."""
        with self._cuda.stream(self._stream):
            target.copy_(tensor)

    def receive(self, sent: Sent) -> dict[Any, Tensor]:
        """The tensors, for what the current stream does from here on; the host does not wait."""
        stream = self._cuda.current_stream(self._device)
        stream.wait_event(sent.arrived)
        for tensor in sent.tensors.values():
            tensor.record_stream(stream)  # or the copies' stream would get their memory back while this one reads it
        return sent.tensors

    def close(self) -> None:
        """Waits for what is on its way, and gives its memory back."""
        while self._lent:
            self._lent.popleft()[0].synchronize()
