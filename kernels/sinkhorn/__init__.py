"""Sinkhorn: scores of a batch -> balanced assignments to prototypes.

    Q = exp((scores - max) / epsilon)                                 max over all scores of all ranks
    `iterations` times:  every prototype's column of Q is divided by its sum over the samples of all ranks,
                         then every sample's row by its sum

Afterwards every sample's assignment sums to one, and prototypes get nearly equal shares of the global batch. The order
is SwAV's; its factors 1/K and 1/B cancel and are left out. Column sums are all-reduced in every iteration, so W ranks
find what one finds with all samples. A prototype too far from every sample for float32 is assigned nothing.

`triton_impl.py` keeps Q as diag(v) exp(...) diag(u): two vectors, with the scores read again where they are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int = 3, impl: Choice | None = None) -> Tensor:
    """Sinkhorn-Knopp assignments (SwAV, Caron et al., arXiv 2006.09882, section 3.2).

    Call it on every rank of the default process group, where there is one: it communicates, without waiting for the
    device.

    Args:
        scores: (B, K), this rank's samples against the prototypes; any floating dtype (float64: reference only), any
            strides.
        epsilon: temperature, positive; 0.05 for cosines.
        iterations: at least 1.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, K) float32 (float64 for float64 scores), rows summing to one. No gradient.

    Raises:
        UserError: arguments that make no sense, or an implementation that cannot run them.
    """
    if scores.dim() != 2 or not scores.is_floating_point():
        raise UserError(f"sinkhorn: scores are {scores.dtype} {tuple(scores.shape)}, they must be floating (B, K)")
    if epsilon <= 0 or iterations < 1:
        raise UserError(f"sinkhorn: epsilon must be positive and iterations at least 1, not {epsilon}, {iterations}")
    return OPERATOR(scores, epsilon=epsilon, iterations=iterations, impl=impl)


def _shape_class(scores: Tensor, **options) -> ShapeClass:
    return scores.device.type, scores.dtype, scores.shape[1]


def _cost(scores: Tensor, *, iterations: int, **options) -> Cost:
    """Each iteration reads the scores twice; the maximum is a read more, the assignments are written in float32."""
    reads = 2 * iterations + 2
    total = reads * scores.numel() * scores.element_size() + scores.numel() * 4
    return Cost(bytes=total, flops=4 * reads * scores.numel(), forward_bytes=total)


def _triton_supports(device: str, dtype: torch.dtype, prototypes: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the scores are {dtype}"
    return None


OPERATOR = Operator(
    name="sinkhorn",
    doc="balanced assignments of a global batch to prototypes",
    reference=reference.sinkhorn,
    shape_class=_shape_class,
    size_names=("prototypes",),
    gradients=(),
    cases=cases.CASES,
    cost=_cost,
    batched=("scores",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:sinkhorn", _triton_supports),),
)
