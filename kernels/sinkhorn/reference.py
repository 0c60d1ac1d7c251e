"""Sinkhorn in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce(x: Tensor, operation: str = "SUM") -> Tensor:
    """`x` of all ranks, reduced in place; `x` itself without a process group."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x, getattr(dist.ReduceOp, operation))
    return x


def largest(scores: Tensor) -> Tensor:
    """The largest score of all ranks, a scalar of the scores' dtype; -inf where there is none."""
    return all_reduce(scores.amax() if scores.numel() else scores.new_full((), float("-inf")), "MAX")


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Arguments and result of `headrace.kernels.sinkhorn.sinkhorn`."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    q = (scores - largest(scores)).div_(epsilon).exp_()  # in place: one matrix beside the scores, 1 GB of many patches
    tiny = torch.finfo(q.dtype).tiny  # 0 / tiny = 0: what has no weight gets none
    for _ in range(iterations):
        q /= all_reduce(q.sum(0)).clamp(min=tiny)
        q /= q.sum(1, keepdim=True).clamp(min=tiny)
    return q
