"""Prototype cross-entropy in plain PyTorch, some images at a time: nothing is kept but what it was given.

The backward looks at each tile again and writes its gradient once. Beside arguments and gradient there are a few copies
of a tile; the reference holds five of all logits and more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..recompute import once

_ELEMENTS = 1 << 21  # logits of all crops at a time: a tile's copies stay within a CPU's cache, or nearly


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, center, weights, student_temperature, teacher_temperature, pairs):
        tensors = student, teacher, center, weights
        ctx.save_for_backward(*tensors)
        ctx.options = student_temperature, teacher_temperature, pairs
        loss = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
        for _, _, wanted, log_p, share in _tiles(tensors, ctx.options):
            loss -= (wanted * log_p).sum(-1) @ share
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        student = ctx.saved_tensors[0]
        gradient = torch.empty_like(student)
        for v, rows, wanted, log_p, share in _tiles(ctx.saved_tensors, ctx.options):
            slope = log_p.exp_().mul_(wanted.sum(-1, keepdim=True)).sub_(wanted)
            gradient[v, rows] = slope.mul_((share * grad_loss / ctx.options[0])[:, None])
        return (once(gradient, "prototype_ce", "tiled"), *[None] * 6)


def _tiles(tensors: tuple, options: tuple) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Of each tile of each crop: the crop, the images, the sum of targets (n, K), log p (n, K) and weights (n,)."""
    from . import pair_count

    student, teacher, center, weights = tensors
    student_temperature, teacher_temperature, pairs = options
    precision = torch.promote_types(student.dtype, torch.float32)
    (crops, batch, prototypes), teachers = student.shape, len(teacher)
    if weights is None:
        weights = student.new_full((batch,), 1 / max(batch, 1), dtype=precision)
    weights = weights.to(precision) / pair_count(crops, teachers, pairs)
    tile = max(1, _ELEMENTS // max(1, crops * prototypes))
    for first in range(0, batch, tile):
        rows = slice(first, first + tile)
        target = teacher[:, rows].to(precision)
        if teacher_temperature is not None:
            target = target if center is None else target - center.to(precision)
            target = (target / teacher_temperature).softmax(-1)
        everything = None if pairs == "same" else target.sum(0)
        for v in range(crops):
            own = target[v] if v < teachers and pairs != "all" else None
            wanted = own if pairs == "same" else everything if own is None else everything - own
            yield v, rows, wanted, (student[v, rows].to(precision) / student_temperature).log_softmax(-1), weights[rows]


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
    """Arguments and result of `headrace.kernels.prototype_ce.prototype_ce`."""
    return _Tiled.apply(student, teacher, center, weights, student_temperature, teacher_temperature, pairs)
