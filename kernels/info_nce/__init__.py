"""InfoNCE: the cross-entropy of picking the right one among many keys, by similarity.

    s_ij   = rows_i . columns_j / temperature                       j = exclude_i left out
    loss   = mean over i of  log(sum_j exp(s_ij)) - s_i,positive(i)          `info_nce`
    loss   = mean over i of  log(exp(s_i) + sum_j exp(s_ij)) - s_i                  `info_nce_queue`
             with s_i = rows_i . keys_i / temperature

The gradient is an attention output: d loss / d rows_i = (sum_j p_ij columns_j - positive_i) / (temperature B). So
`triton_impl.py` finds loss and gradient in one pass over the columns as flash attention makes it, split over them to
fill the GPU, in memory O(B D): there is no B x N matrix. `reference.py` builds that matrix.

`info_nce` serves SimCLR, MoCo v3, NNCLR (columns: the batch, of all ranks); `info_nce_queue` MoCo, DenseCL (rows: all
positions of all images) and memory banks whose negatives are shared by the batch. Keep a queue as (K, D) rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def info_nce(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor,
    exclude: Tensor | None = None,
    *,
    temperature: float,
    impl: Choice | None = None,
) -> Tensor:
    """InfoNCE with the positive among the columns (NT-Xent of Chen et al., arXiv 2002.05709, equation 1).

    Args:
        rows: (B, D), of unit length as a rule; float32, bfloat16, float16, or float64 (reference only); any strides.
        columns: (N, D), same dtype: the candidates, those of all ranks where there are several.
        positive: (B,) int64, each row's column.
        exclude: (B,) int64, a column that is no candidate for the row: the row itself; None excludes nothing.
        temperature: what similarities are divided by, positive.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        The mean over rows, a float32 scalar (float64 for float64 rows); 0 for a batch of none. Gradients flow to rows
        and columns.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    _check(rows, columns, temperature)
    for name, index in (("positive", positive), ("exclude", exclude)):
        if index is not None and (index.shape != rows.shape[:1] or index.dtype != torch.int64):
            raise UserError(
                f"info_nce: {name} is {index.dtype} {tuple(index.shape)}, it must be torch.int64 ({len(rows)},)"
            )
    return OPERATOR(rows, columns, positive, exclude, None, temperature=temperature, impl=impl)


def info_nce_queue(
    rows: Tensor, keys: Tensor, queue: Tensor, *, temperature: float, impl: Choice | None = None
) -> Tensor:
    """InfoNCE with a key of its own for each row and the same negatives for all (MoCo, arXiv 1911.05722, equation 1).

    Args:
        rows: (B, D), as for `info_nce`.
        keys: (B, D), same dtype: each row's positive. They get no gradient: detach them.
        queue: (K, D), same dtype: the negatives. Overwrite it only after the backward.
        temperature, impl: as for `info_nce`.

    Returns:
        The mean over rows, as `info_nce`. Gradients flow to rows, and to a queue that asks for one.

    Raises:
        UserError: as `info_nce`; keys that require a gradient.
    """
    _check(rows, queue, temperature)
    if keys.shape != rows.shape or keys.dtype != rows.dtype:
        raise UserError(
            f"info_nce: keys are {keys.dtype} {tuple(keys.shape)}, rows are {rows.dtype} {tuple(rows.shape)}; each row "
            "needs one key"
        )
    if keys.requires_grad and torch.is_grad_enabled():
        raise UserError("info_nce: keys get no gradient but require one; detach them, or make them columns")
    return OPERATOR(rows, queue, None, None, keys, temperature=temperature, impl=impl)


def _check(rows: Tensor, columns: Tensor, temperature: float) -> None:
    if rows.dim() != 2 or columns.dim() != 2 or rows.shape[1] != columns.shape[1] or rows.dtype != columns.dtype:
        raise UserError(
            f"info_nce: {rows.dtype} {tuple(rows.shape)} cannot be compared with {columns.dtype} "
            f"{tuple(columns.shape)}; both must be (count, D) of one dtype"
        )
    if temperature <= 0:
        raise UserError(f"info_nce: temperature must be positive, not {temperature}")


def _shape_class(rows: Tensor, columns: Tensor, *others: Tensor | None, **options) -> ShapeClass:
    return rows.device.type, rows.dtype, rows.shape[1]


def _cost(rows: Tensor, columns: Tensor, positive: Tensor | None, exclude, keys: Tensor | None, **options) -> Cost:
    """Two products forward, two more for the columns' gradient, which a queue does not need."""
    product, itemsize = 2 * rows.shape[0] * columns.numel(), rows.element_size()
    forward = (rows.numel() + columns.numel() + (0 if keys is None else keys.numel())) * itemsize
    written = rows.numel() if positive is None else rows.numel() + columns.numel()
    return Cost(
        bytes=forward + written * itemsize,
        flops=2 * product if positive is None else 4 * product,
        forward_bytes=forward,
        forward_flops=2 * product,
    )


def _triton_supports(device: str, dtype: torch.dtype, width: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the rows are {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies the bits of bfloat16 matrices, not their values"
    if width > 256:
        return f"rows of {width} values are more than the 256 that one program holds"
    return None


OPERATOR = Operator(
    name="info_nce",
    doc="contrastive cross-entropy against a batch or a queue",
    reference=reference.info_nce,
    shape_class=_shape_class,
    size_names=("width",),
    gradients=("rows", "columns"),
    cases=cases.CASES,
    cost=_cost,
    batched=("rows", "positive", "exclude", "keys"),
    autocast=("rows", "columns", "keys"),  # products in 16 bit, as of any matrices; sums and the loss in float32
    fast=(Implementation("triton", f"{__name__}.triton_impl:info_nce", _triton_supports),),
)
