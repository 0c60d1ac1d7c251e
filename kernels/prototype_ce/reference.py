"""Prototype cross-entropy in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    weights: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: str = "crossed",
) -> Tensor:
    """Arguments and result of `headrace.kernels.prototype_ce.prototype_ce`; a float64 student is judged in float64."""
    precision = torch.promote_types(student.dtype, torch.float32)
    target = teacher.detach().to(precision)
    if teacher_temperature is not None:
        target = target if center is None else target - center.to(precision)
        target = (target / teacher_temperature).softmax(-1)
    log_p = (student.to(precision) / student_temperature).log_softmax(-1)
    (crops, batch, _), teachers = student.shape, len(teacher)
    compared = [
        (t, v) for t in range(teachers) for v in range(crops) if pairs == "all" or (v == t) == (pairs == "same")
    ]
    if weights is None:
        losses = [-(target[t] * log_p[v]).sum() for t, v in compared]
        return torch.stack(losses).sum() / (len(losses) * max(batch, 1))
    losses = [-(target[t] * log_p[v]).sum(-1) @ weights.to(precision) for t, v in compared]
    return torch.stack(losses).sum() / len(losses)
