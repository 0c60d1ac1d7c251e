"""KoLeo in plain PyTorch with the similarities of some rows at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 128  # whose similarities exist at a time


@torch.no_grad()
def neighbours(x: Tensor, group: int, nearest: int) -> Tensor:
    """x (N, D) of unit length -> (N, nearest) int64: the rows of each one's nearest neighbours in its group."""
    found = []
    for start in range(0, len(x), group):
        own = x[start : start + group]
        for first in range(0, group, _ROWS):
            similarity = own[first : first + _ROWS] @ own.T
            similarity.diagonal(first).fill_(-2)
            found.append(similarity.topk(nearest, dim=1).indices + start)
    return torch.cat(found) if found else torch.zeros(0, nearest, dtype=torch.int64, device=x.device)


def koleo(embeddings: Tensor, *, group: int, nearest: int = 1) -> Tensor:
    """Arguments and result of `headrace.kernels.koleo.koleo`."""
    from . import loss_of

    x = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1, eps=1e-8)
    return loss_of(x, neighbours(x, group, nearest))
