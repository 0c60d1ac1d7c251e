"""Prototype cross-entropy in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
) -> Tensor:
    """Arguments and result of `headrace.kernels.prototype_ce.prototype_ce`; a float64 student is judged in float64."""
    precision = torch.promote_types(student.dtype, torch.float32)
    target = teacher.detach().to(precision)
    if teacher_temperature is not None:
        target = target if center is None else target - center.to(precision)
        target = (target / teacher_temperature).softmax(-1)
    log_p = (student.to(precision) / student_temperature).log_softmax(-1)
    (crops, batch, _), teachers = student.shape, len(teacher)
    pairs = [-(target[t] * log_p[v]).sum() for t in range(teachers) for v in range(crops) if v != t]
    return torch.stack(pairs).sum() / (len(pairs) * max(batch, 1))
