"""Cross-correlation loss in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import all_reduce_sum, world_size


def cross_correlation(a: Tensor, b: Tensor, *, weight: float) -> Tensor:
    """Arguments and result of `headrace.kernels.cross_correlation.cross_correlation`."""
    precision = torch.promote_types(a.dtype, torch.float32)
    c = all_reduce_sum(a.to(precision).T @ b.to(precision)) / (len(a) * world_size())
    diagonal = c.diagonal()
    return (diagonal - 1).square().sum() + weight * (c - diagonal.diag()).square().sum()
