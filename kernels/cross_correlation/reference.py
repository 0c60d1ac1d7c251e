"""Cross-correlation loss in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on every rank's summand, so the gradient is summed as well."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def cross_correlation(a: Tensor, b: Tensor, *, weight: float) -> Tensor:
    """Arguments and result of `headrace.kernels.cross_correlation.cross_correlation`."""
    precision = torch.promote_types(a.dtype, torch.float32)
    c = a.to(precision).T @ b.to(precision)
    if world_size() > 1:
        c = _SumOverRanks.apply(c)
    c = c / (len(a) * world_size())
    diagonal = c.diagonal()
    return (diagonal - 1).square().sum() + weight * (c - diagonal.diag()).square().sum()
