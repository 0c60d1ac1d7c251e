"""SIGReg in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import all_reduce_sum, world_size


def sigreg(projections: Tensor, *, points: int, t_max: float) -> Tensor:
    """Arguments and result of `headrace.kernels.sigreg.sigreg`."""
    precision = torch.promote_types(projections.dtype, torch.float32)
    t = nodes(points, t_max, dtype=precision, device=projections.device)
    angles = projections.to(precision)[..., None] * t  # (V, N, S, points - 1)
    moments = torch.stack([angles.cos().sum(1), angles.sin().sum(1)])
    return statistic(moments, projections.shape[1], t)


def nodes(points: int, t_max: float, **options) -> Tensor:
    """(points - 1,): where characteristic functions are compared, without 0; `options`: dtype and device."""
    return torch.arange(1, points, **options) * (t_max / (points - 1))


def statistic(moments: Tensor, samples: int, t: Tensor) -> Tensor:
    """The loss, of sums of cosines and of sines (2, V, S, points - 1) over this rank's `samples`."""
    total = samples * world_size()
    cosine, sine = all_reduce_sum(moments) / total
    normal = (-0.5 * t.square()).exp()
    weight = 2 * t[0] * normal * torch.where(t == t[-1], 0.5, 1.0)
    return total * (((cosine - normal).square() + sine.square()) * weight).sum(-1).mean()
