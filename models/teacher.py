"""Momentum teachers: copies of the student that follow it slowly."""

from __future__ import annotations

import copy
import math

from torch import nn

from ..kernels.ema import ema
from .algorithm import Progress


class Teacher(nn.Module):
    """Copies of some of a student's modules, under the same names: ``Teacher(backbone=a, head=b)``.

    A copy starts equal to its original, takes no gradient, and changes in `update` alone. It is in training mode when
    the student is, so its batch normalisations use the statistics of its own batches. Parameters are averaged; buffers
    (running means and variances) are the copy's own, as in the authors' code of MoCo and BYOL: they belong to the
    averaged weights that made them, and nothing in training reads them.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))

    def update(self, student: nn.Module, momentum: float) -> None:
        """teacher <- momentum teacher + (1 - momentum) student; `student` has the modules under the same names."""
        own = [p for module in self.children() for p in module.parameters()]
        others = [p for name, _ in self.named_children() for p in getattr(student, name).parameters()]
        moved = [pair for pair in zip(own, others, strict=True) if pair[1].requires_grad]  # others stay equal
        ema(*map(list, zip(*moved)), momentum=momentum)


def cosine_momentum(start: float, progress: Progress) -> float:
    """1 - (1 - start) (1 + cos(pi step / total_steps)) / 2: `start` at step 0, exactly 1 at the end (BYOL, eq. 1)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress.fraction)) / 2


def linear_momentum(start: float, progress: Progress) -> float:
    """From `start` at step 0 in a straight line to 1, which it would reach at the end (I-JEPA)."""
    return start + (1 - start) * progress.fraction
