"""KoLeo: embeddings spread out, each away from its nearest neighbour.

    x      = embeddings of unit length
    nn(i)  = the j != i of the same group with the largest x_i . x_j; or the `nearest` such
    loss   = - mean of log(|x_i - x_nn(i) + 1e-8| + 1e-8)

The gradient flows through both x_i and its neighbour. `reference.py` builds the matrix of all similarities in a
group; `tiled.py` finds neighbours some rows at a time, so that what it keeps grows with the rows and not with their
square, and `triton_impl.py` keeps the best neighbour of each row in registers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def koleo(embeddings: Tensor, *, group: int | None = None, nearest: int = 1, impl: Choice | None = None) -> Tensor:
    """The entropy estimate of Kozachenko and Leonenko as a loss (Sablayrolles et al., arXiv 1806.03198; DINOv2, arXiv
    2304.07193, section 4).

    Args:
        embeddings: (N, D), any floating dtype, computed in float32 at least; any strides.
        group: neighbours are looked for among so many consecutive rows; a divisor of N, at least 2. None: all rows.
        nearest: how many neighbours of each row, fewer than there are in a group.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        The mean over rows and neighbours, a float32 scalar (float64 for float64 embeddings); 0 for no rows.

    Raises:
        UserError: shapes or groups that do not fit, or an implementation that cannot run them.
    """
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise UserError(
            f"koleo: embeddings are {embeddings.dtype} {tuple(embeddings.shape)}, they must be floating (N, D)"
        )
    rows = len(embeddings)
    group = rows if group is None else group
    if rows and (group < 2 or rows % group):
        raise UserError(
            f"koleo: groups of {group} cannot be made of {rows} rows; a row needs a neighbour, so 2 or more"
        )
    if rows and not 1 <= nearest < group:
        raise UserError(f"koleo: {nearest} nearest neighbours; in a group of {group} a row has 1 to {group - 1}")
    return OPERATOR(embeddings, group=group, nearest=nearest, impl=impl)


def loss_of(x: Tensor, neighbours: Tensor) -> Tensor:
    """x (N, D) of unit length and the rows (N, k) of each one's neighbours -> the loss."""
    distance = (x[:, None] - x[neighbours] + 1e-8).norm(dim=2)
    return -(distance + 1e-8).log().sum() / max(1, neighbours.numel())


def _shape_class(embeddings: Tensor, *, group: int, nearest: int = 1) -> ShapeClass:
    return embeddings.device.type, embeddings.dtype, embeddings.shape[1], nearest


def _cost(embeddings: Tensor, *, group: int, nearest: int = 1) -> Cost:
    """Embeddings are read and their gradient written; a product of each pair of a group."""
    once = embeddings.numel() * embeddings.element_size()
    flops = 2 * embeddings.numel() * group
    return Cost(bytes=3 * once, flops=flops + 12 * embeddings.numel(), forward_bytes=once, forward_flops=flops)


def _triton_supports(device: str, dtype: torch.dtype, width: int, nearest: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the embeddings are {dtype}"
    if nearest > 1:
        return f"it keeps one neighbour of each row, not {nearest}"
    return None


OPERATOR = Operator(
    name="koleo",
    doc="embeddings spread out by their nearest neighbours",
    reference=reference.koleo,
    shape_class=_shape_class,
    size_names=("width", "nearest"),
    gradients=("embeddings",),
    cases=cases.CASES,
    cost=_cost,
    fast=(
        Implementation("triton", f"{__name__}.triton_impl:koleo", _triton_supports),
        Implementation("tiled", f"{__name__}.tiled:koleo"),
    ),
)
