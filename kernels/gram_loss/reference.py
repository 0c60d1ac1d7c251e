"""Gram loss in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_loss(student: Tensor, teacher: Tensor, *, negatives: bool = True) -> Tensor:
    """Arguments and result of `headrace.kernels.gram_loss.gram_loss`."""
    own, other = units(student, teacher)
    if not len(own):
        return own.sum()
    own, other = own @ own.mT, other @ other.mT
    if not negatives:
        own, other = own.relu(), other.relu()
    return (own - other).square().mean()


def units(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with patches of unit length, in float32 at least."""
    precision = torch.promote_types(student.dtype, torch.float32)
    return F.normalize(student.to(precision), dim=-1), F.normalize(teacher.to(precision), dim=-1)
