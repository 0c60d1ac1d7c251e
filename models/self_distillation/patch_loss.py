"""The loss of masked patches, whose logits are never there as a whole.

Of M patches and K prototypes the logits of student and teacher, their softmaxes and gradients are (M, K) each: 1 GB of
the 3,771 masked patches of 64 images of 224 px and 65,536 prototypes. Here some rows at a time meet the prototypes, and
the gradient of their logits goes on at once to their vectors (M, D) and to the prototypes (K, D), within the forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...kernels.prototype_ce import prototype_ce
from ..sample_losses import prototype_row_losses

_ELEMENTS = 1 << 24  # logits at a time
_STEEPEST = 32.0  # of slopes between rows: small ones survive float16, and sums over a tile's rows do not overflow


@dataclass(frozen=True)
class PatchTargets:
    """What a teacher says of M patches: distributions, or vectors whose products with its prototypes are logits."""

    rows: Tensor  # (M, K) distributions, or (M, D)
    prototypes: Tensor | None  # (K, D); None: `rows` are distributions
    options: dict  # of `prototype_ce`: temperatures and centre

    def of(self, rows: slice) -> Tensor:
        """(n, K)"""
        own = self.rows[rows]
        return own if self.prototypes is None else F.linear(own, self.prototypes)


def autocast_to(x: Tensor) -> Tensor:
    """`x` as autocast would give it to a linear layer: once, where it meets many tiles."""
    device = x.device.type
    cast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if cast else x


def _tiles(rows: int, prototypes: int) -> Iterator[slice]:
    count = max(1, _ELEMENTS // prototypes)
    return (slice(first, first + count) for first in range(0, rows, count))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors, prototypes, targets, weights, differentiate):
        loss = torch.zeros((), dtype=torch.promote_types(vectors.dtype, torch.float32), device=vectors.device)
        slopes = [torch.zeros_like(vectors), torch.zeros_like(prototypes)] if differentiate else []
        inputs, matrix = autocast_to(vectors), autocast_to(prototypes)
        scale = _STEEPEST * targets.options["student_temperature"] / weights.amax().clamp(min=1e-30)
        options = {**targets.options, "pairs": "same"}
        for rows in _tiles(len(vectors), len(prototypes)):
            logits = F.linear(inputs[rows], matrix).requires_grad_(differentiate)
            told, share = targets.of(rows)[None], scale * weights[rows]
            with torch.set_grad_enabled(differentiate):
                own = prototype_ce(logits[None], told, weights=share, **options)
            loss += own.detach()
            if differentiate:
                (slope,) = torch.autograd.grad(own, logits)
                slopes[0][rows] = slope @ matrix
                slopes[1] += slope.T @ inputs[rows]
        ctx.save_for_backward(scale, *slopes)
        return loss / scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        scale, *slopes = ctx.saved_tensors
        return *[(slope * (grad_loss / scale)).to(slope.dtype) for slope in slopes], None, None, None


@torch.compiler.disable  # its gradient is taken in the forward, which no graph can hold
def patch_loss(vectors: Tensor, prototypes: Tensor, targets: PatchTargets, weights: Tensor) -> Tensor:
    """The sum over rows of `weights` times the cross-entropy of their logits with their targets.

    As `prototype_ce` of all logits at once, with "same" pairs and the same gradients.

    Args:
        vectors: (M, D), the student's patches as prototypes meet them.
        prototypes: (K, D) of the student.
        targets: what the teacher says of the same patches.
        weights: (M,) float32 or float64.

    Returns:
        A scalar, float32 or, of float64 vectors, float64; 0 of no rows.
    """
    if not len(vectors):
        return (vectors.sum() + 0 * prototypes.sum()).to(torch.promote_types(vectors.dtype, torch.float32))
    return _CrossEntropy.apply(vectors, prototypes, targets, weights, torch.is_grad_enabled())


@torch.no_grad()
def patch_row_losses(vectors: Tensor, prototypes: Tensor, targets: PatchTargets) -> Tensor:
    """(M,): the cross-entropy of each row; see `patch_loss`."""
    inputs, matrix = autocast_to(vectors), autocast_to(prototypes)
    losses = [vectors.new_zeros(0, dtype=torch.float32)]
    for rows in _tiles(len(vectors), len(prototypes)):
        losses.append(prototype_row_losses(F.linear(inputs[rows], matrix), targets.of(rows), **targets.options))
    return torch.cat(losses)
