"""Cross-correlation loss: two views' embeddings agree in each dimension, and dimensions do not repeat each other.

    C      = a^T b / N                                                (D, D), over the samples of all ranks
    loss   = sum over i of (C_ii - 1)^2  +  weight * sum over i != j of C_ij^2

`reference.py` builds C and all-reduces it. `gram.py` never does: with fewer samples than dimensions

    sum over ij of C_ij^2 = sum over nm of (a_n . a_m) (b_n . b_m) / N^2

takes D/N times fewer operations, and the gathered embeddings instead of a D x D matrix cross the network. Both are
matrix products, which PyTorch's library does as well as they can be done, so no Triton here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..ranks import world_size
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass
from . import cases, reference


def cross_correlation(a: Tensor, b: Tensor, *, weight: float = 0.0051, impl: Choice | None = None) -> Tensor:
    """Redundancy reduction (Barlow Twins, Zbontar et al., arXiv 2103.03230, equation 1).

    With a default process group C is that of all ranks' samples, and every rank returns the same loss. Its gradient is
    scaled so that averaging over ranks, which DistributedDataParallel does, gives that of one process with all samples.

    Args:
        a, b: (N, D) embeddings of two views, each dimension with zero mean and unit variance over the global batch;
            as many on every rank; one dtype, any floating one, computed in float32 at least (matrix products follow
            `torch.set_float32_matmul_precision`); any strides.
        weight: lambda, of the off-diagonal part.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        The loss, a float32 scalar (float64 for float64 embeddings). Gradients flow to both.

    Raises:
        UserError: shapes or dtypes that do not fit together, no samples, or an implementation that cannot run them.
    """
    if a.dim() != 2 or a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        raise UserError(
            f"cross_correlation: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)} must both be (N, D) of one "
            "floating dtype"
        )
    if not len(a):
        raise UserError("cross_correlation: a batch of none has no correlation")
    return OPERATOR(a, b, weight=weight, impl=impl)


def _shape_class(a: Tensor, b: Tensor, **options) -> ShapeClass:
    return a.device.type, a.dtype, a.shape[1], int(len(a) * world_size() < a.shape[1])


def _cost(a: Tensor, b: Tensor, **options) -> Cost:
    """Two Gram matrices forward, two products with them backward; or C, and two products with it."""
    samples, width = a.shape
    product = 2 * samples * samples * width if samples < width else samples * width * width
    once = (a.numel() + b.numel()) * a.element_size()
    return Cost(bytes=2 * once, flops=4 * product, forward_bytes=once, forward_flops=2 * product)


def _gram_supports(device: str, dtype: torch.dtype, width: int, fewer_samples: int) -> str | None:
    return None if fewer_samples else f"it is for batches of fewer than {width} samples, as many as dimensions"


OPERATOR = Operator(
    name="cross_correlation",
    doc="redundancy reduction by the views' cross-correlation matrix",
    reference=reference.cross_correlation,
    shape_class=_shape_class,
    size_names=("width", "fewer_samples"),
    gradients=("a", "b"),
    cases=cases.CASES,
    cost=_cost,
    fast=(Implementation("gram", f"{__name__}.gram:cross_correlation", _gram_supports),),
)
