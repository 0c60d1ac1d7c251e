"""Window attention: self-attention inside the windows of a feature map, with a learned bias for each relative position.

A map is rolled by `shift` tokens up and left, cut into windows of w x w, and each token attends to the N = w*w tokens
of its window; the result is rolled back. For the query at (y_i, x_i) and the key at (y_j, x_j) of a window

    S_ij = scale * q_i . k_j + T[(y_i - y_j + w-1) * (2w-1) + (x_i - x_j + w-1)] + M_ij
    o_i  = sum over j of softmax_j(S_ij) v_j

M is 0; -100 between tokens that only the roll made neighbours (Swin); -inf between tokens of different groups (the two
images of MixMIM). -100 and not -inf because Swin's weights were trained with it.

`reference.py` says it in plain PyTorch; `triton_impl.py`, by `window_kernels.py`, does it where the tokens lie: nothing
is rolled, cut or masked in memory, no matrix of N x N is stored, and the table's gradient has the same bits each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def window_attention(
    qkv: Tensor,
    table: Tensor,
    groups: Tensor | None = None,
    *,
    window: int,
    shift: int = 0,
    scale: float | None = None,
    impl: Choice | None = None,
) -> Tensor:
    """Attention in windows of a feature map (Liu et al., Swin Transformer, 2021; groups: Liu et al., MixMAE, 2023).

    Args:
        qkv: (B, H, W, 3, heads, D), what the linear layer for queries, keys and values returns, reshaped; contiguous.
            float32, bfloat16, float16, or float64 (reference only).
        table: ((2w-1)^2, heads), the bias by relative position; usually float32 whatever the rest is.
        groups: (1 or B, H, W) int8, or None. Tokens of different values do not see each other.
        window: w, in tokens; divides H and W (pad the map if it does not).
        shift: 0 to w-1 tokens; Swin uses w // 2 in every other block.
        scale: of the products; D^-0.5 if None.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, H, W, heads, D), contiguous, in the dtype of `qkv`. Gradients flow to `qkv` and `table`. Softmax and sums
        are in float32 (float64 for float64). There is no dropout of attention.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    _check(qkv, table, groups, window, shift)
    return OPERATOR(qkv, table, groups, window=window, shift=shift, scale=scale, impl=impl)


def _check(qkv: Tensor, table: Tensor, groups: Tensor | None, window: int, shift: int) -> None:
    if qkv.dim() != 6 or qkv.shape[3] != 3:
        raise UserError(f"window_attention: qkv is {tuple(qkv.shape)}, it must be (B, H, W, 3, heads, D)")
    batch, height, width, _, heads, _ = qkv.shape
    if height % window or width % window:
        raise UserError(
            f"window_attention: windows of {window}x{window} do not divide a map of {height}x{width}; pad the map"
        )
    if not 0 <= shift < window:
        raise UserError(f"window_attention: shift is {shift}, it must be 0 to {window - 1} for a window of {window}")
    check_table("window_attention", table, window, heads)
    if groups is not None and (
        groups.dtype != torch.int8 or groups.shape[1:] != (height, width) or groups.shape[0] not in (1, batch)
    ):
        raise UserError(
            f"window_attention: groups is {groups.dtype} {tuple(groups.shape)}, it must be torch.int8 "
            f"(1 or {batch}, {height}, {width})"
        )


def check_table(op: str, table: Tensor, window: int, heads: int) -> None:
    """Raises `UserError` unless `table` has a number for each relative position in a window and each head."""
    if table.shape != ((2 * window - 1) ** 2, heads) or not table.is_floating_point():
        raise UserError(
            f"{op}: table is {table.dtype} {tuple(table.shape)}, a window of {window} and {heads} heads need floating "
            f"point {((2 * window - 1) ** 2, heads)}"
        )


def _shape_class(qkv: Tensor, table: Tensor, groups: Tensor | None = None, *, window: int, **options) -> ShapeClass:
    return qkv.device.type, qkv.dtype, window, qkv.shape[5]


def _cost(qkv: Tensor, table: Tensor, groups: Tensor | None = None, *, window: int, **options) -> Cost:
    """Forward: qkv in, o out, 2 products; backward: qkv and the gradient of o in, that of qkv out, 5 products."""
    once = table.numel() * table.element_size() + (0 if groups is None else groups.numel())
    return attention_cost(qkv, qkv.numel() // 3 * window * window, once, once + table.numel() * table.element_size())


def attention_cost(qkv: Tensor, products: int, forward_extra: int, backward_extra: int) -> Cost:
    """`products`: of queries and keys, in multiplications; the extras: bytes besides those of qkv and the output."""
    out = qkv.numel() // 3 * qkv.element_size()
    return Cost(11 * out + forward_extra + backward_extra, 14 * products, 4 * out + forward_extra, 4 * products)


def _triton_supports(device: str, dtype: torch.dtype, window: int, head_dim: int) -> str | None:
    if refused := attention_in_triton(device, dtype, head_dim):
        return refused
    if window * window > 64:
        return f"a window of {window}x{window} is more than the 64 tokens that one program holds; use segment_attention"
    return None


def attention_in_triton(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the attention kernels cannot run on this device, in this dtype, or with heads of this size, or None."""
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, qkv is {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies the bits of bfloat16 matrices as if they were integers"
    if head_dim not in (32, 64):
        return f"heads have 32 or 64 channels, not {head_dim}"
    return None


OPERATOR = Operator(
    name="window_attention",
    doc="attention in shifted or grouped windows, learned relative bias",
    reference=reference.window_attention,
    shape_class=_shape_class,
    size_names=("window", "head_dim"),
    gradients=("qkv", "table"),
    cases=cases.CASES,
    cost=_cost,
    batched=("qkv", "groups"),
    autocast=("qkv",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:window_attention", _triton_supports),),
)
