"""Gram loss in plain PyTorch, some patches at a time: what is kept is the size of the patches.

A tile's difference gives its share of the loss and, times the patches, its rows of the gradient; so the forward finds
both, and no matrix is looked at twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recompute import once
from .reference import units

_ELEMENTS = 1 << 18  # similarities at a time


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, negatives):
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(student) if wanted else None
        loss, count = student.new_zeros(()), max(1, student.shape[0] * student.shape[1] ** 2)
        rows = max(1, _ELEMENTS // max(1, student.shape[1]))
        for image, (own, other) in enumerate(zip(student, teacher)):
            for first in range(0, len(own), rows):
                part = slice(first, first + rows)
                difference, theirs = own[part] @ own.T, other[part] @ other.T
                if not negatives:
                    unlike = difference <= 0
                    difference.relu_()
                    theirs.relu_()
                difference -= theirs
                loss += difference.square().sum() / count
                if wanted:  # both x_i . x_j and x_j . x_i hold x_i
                    gradient[image, part] = (difference if negatives else difference.masked_fill_(unlike, 0)) @ own
        ctx.save_for_backward(gradient.mul_(4 / count) if wanted else None)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return once(ctx.saved_tensors[0] * grad_loss, "gram_loss", "tiled"), None, None


def gram_loss(student: Tensor, teacher: Tensor, *, negatives: bool = True) -> Tensor:
    """Arguments and result of `headrace.kernels.gram_loss.gram_loss`."""
    return _Tiled.apply(*units(student, teacher), negatives)
