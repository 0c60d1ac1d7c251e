"""KoLeo in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo(embeddings: Tensor, *, group: int, nearest: int = 1) -> Tensor:
    """Arguments and result of `headrace.kernels.koleo.koleo`."""
    if not len(embeddings):
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).sum()
    x = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1, eps=1e-8)
    x = x.unflatten(0, (-1, group))
    similarity = (x @ x.mT).detach()
    similarity.diagonal(dim1=1, dim2=2).fill_(-2)
    found = similarity.topk(nearest, dim=2).indices.flatten(1)  # (groups, group nearest)
    neighbours = x.gather(1, found[..., None].expand(-1, -1, x.shape[2])).unflatten(1, (group, nearest))
    distance = (x[:, :, None] - neighbours + 1e-8).norm(dim=3)
    return -(distance + 1e-8).log().mean()
