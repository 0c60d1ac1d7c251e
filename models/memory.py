"""What a method remembers of earlier steps: buffers on the device, equal on all ranks, part of the checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from .distributed import gather_with_gradient


class Queue(nn.Module):
    """The newest `length` unit vectors, first in first out (MoCo, arXiv 1911.05722). `rows` is (length, dimension).

    It starts with random directions. Nothing here waits for the device: the place of the next row is itself a tensor.
    """

    def __init__(self, length: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, dimension), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Writes the `keys` (n, dimension) of all ranks, in rank order, over the oldest rows."""
        keys = gather_with_gradient(keys.detach()).flatten(0, 1)
        length = self.rows.shape[0]
        if len(keys) > length:
            raise UserError(
                f"algorithm.queue: a queue of {length} cannot take {len(keys)} keys in one step; lengthen it, or lower "
                "train.batch_size"
            )
        places = (self.next + torch.arange(len(keys), device=keys.device)) % length
        self.rows.index_copy_(0, places, keys.to(self.rows.dtype))
        self.next.copy_((self.next + len(keys)) % length)


class SampleMemory(nn.Module):
    """What is known of each training sample: a vector (`rows`), a cluster (`labels`), or both.

    The buffers come into being in `allocate`, when the number of samples is known; a checkpoint brings its own.
    """

    def __init__(self, dimension: int | None = None, labels: bool = False) -> None:
        super().__init__()
        self.register_buffer("rows", None if dimension is None else torch.empty(0, dimension))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64) if labels else None)

    def allocate(self, samples: int) -> None:
        """Random directions, and cluster 0."""
        if self.rows is not None:
            self.rows = F.normalize(self.rows.new_empty(samples, self.rows.shape[1]).normal_(), dim=1)
        if self.labels is not None:
            self.labels = self.labels.new_zeros(samples)

    def _load_from_state_dict(self, state: dict, prefix: str, *arguments) -> None:
        for name, own in self._buffers.items():
            kept = state.get(prefix + name)
            if own is not None and not len(own) and kept is not None:
                self._buffers[name] = own.new_empty(kept.shape)
        super()._load_from_state_dict(state, prefix, *arguments)
