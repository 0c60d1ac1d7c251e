"""Cross-correlation loss from Gram matrices: N x N instead of D x D.

With several ranks each computes its own rows of the Gram matrices, N/W x N, and the gradient of its own samples, which
needs nothing more of the others: no communication in the backward.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..ranks import world_size
from ..recompute import once


def _gather(x: Tensor) -> Tensor:
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())  # the collective takes nothing else
    return torch.cat(parts)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, weight):
        precision = torch.promote_types(a.dtype, torch.float32)
        ctx.dtype, ctx.weight, a, b = a.dtype, weight, a.to(precision), b.to(precision)
        everyone_a, everyone_b = _gather(a), _gather(b)
        gram_a, gram_b = a @ everyone_a.T, b @ everyone_b.T
        squares = (gram_a * gram_b).sum()
        if world_size() > 1:
            dist.all_reduce(squares)
        diagonal = (everyone_a * everyone_b).mean(0)
        ctx.save_for_backward(a, b, everyone_a, everyone_b, gram_a, gram_b, diagonal)
        off_diagonal = squares / len(everyone_a) ** 2 - diagonal.square().sum()
        return (diagonal - 1).square().sum() + weight * off_diagonal

    @staticmethod
    def backward(ctx, gradient):
        a, b, everyone_a, everyone_b, gram_a, gram_b, diagonal = ctx.saved_tensors
        count = len(everyone_a)
        # Averaging over ranks divides by their number what every rank's loss says.
        factor = 2 * world_size() * gradient / count
        of_diagonal = factor * (diagonal - 1 - ctx.weight * diagonal)
        of_squares = factor * ctx.weight / count
        for_a = torch.addcmul(of_squares * (gram_b @ everyone_a), b, of_diagonal)
        for_b = torch.addcmul(of_squares * (gram_a @ everyone_b), a, of_diagonal)
        for_a, for_b = (once(grad.to(ctx.dtype), "cross_correlation", "gram") for grad in (for_a, for_b))
        return for_a, for_b, None


def cross_correlation(a: Tensor, b: Tensor, *, weight: float) -> Tensor:
    """Arguments and result of `headrace.kernels.cross_correlation.cross_correlation`."""
    return _Gram.apply(a, b, weight)
