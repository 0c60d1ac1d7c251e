"""Segment attention: window attention for large windows, whose tokens fall into segments that do not see each other.

The masked attention of `headrace.kernels.window_attention`, where the mask is the same for the whole batch: MixMIM's
windows of 14x14 hold tokens of two images, mixed by one mask for all; windows at the border of a shifted map (Swin)
hold two or four pieces. A segment is a set of tokens of one window that see each other, all and only:

    S_ij = scale * q_i . k_j + T[(y_i - y_j + w-1) * (2w-1) + (x_i - x_j + w-1)]     i, j in one segment
    o_i  = sum over the j of i's segment of softmax_j(S_ij) v_j

`segments_of` lists them, once per step and for all blocks that share map and window. What is in different segments is
never computed, which for MixMIM's two halves is half of the work. Swin's -100 between pieces counts as -inf here: that
changes a softmax by e^-100.

`reference.py` says it in plain PyTorch; `triton_impl.py` leaves the tokens where they lie, stores no matrix of scores,
takes segments of any length, and its gradient of the table has the same bits each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass
from ..window_attention import attention_cost, attention_in_triton, check_table
from . import cases, reference


def segments_of(groups: Tensor, *, window: int, shift: int = 0, count: int = 2) -> Tensor:
    """The segments of a map: the tokens of each window, by group.

    Args:
        groups: (1, H, W) int8 in 0 to count-1, one map for the batch. On a GPU the range is not checked, and the
            result for tokens outside of it is undefined.
        window: w, in tokens; divides H and W.
        shift: 0 to w-1 tokens that the map is rolled before it is cut; pieces that only this brings together are
            segments of their own.
        count: how many groups there are. A window without groups is one: zeros and a count of 1.

    Returns:
        (windows, G, 2, w*w) int32 on the device of `groups`, G = count, 4 * count with a shift: the numbers y*W + x of
        a segment's tokens and their places in the window, then -1 and 0 to the end. Nothing waits for the device.

    Raises:
        UserError: shapes or values that do not fit together.
    """
    if groups.dim() != 3 or groups.shape[0] != 1 or groups.dtype != torch.int8:
        raise UserError(
            f"segments_of: groups is {groups.dtype} {tuple(groups.shape)}, it must be torch.int8 (1, H, W): segments "
            "are the same for the whole batch"
        )
    _check_window("segments_of", *groups.shape[1:], window)
    if not 0 <= shift < window:
        raise UserError(f"segments_of: shift is {shift}, it must be 0 to {window - 1} for a window of {window}")
    checked = groups.device.type == "cpu" and not torch.compiler.is_compiling()
    if checked and not ((groups >= 0) & (groups < count)).all():
        raise UserError(f"segments_of: groups has values outside of 0 to {count - 1}; give their number as count")
    return reference.segments_of(groups, window=window, shift=shift, count=count)


def segment_attention(
    qkv: Tensor,
    table: Tensor,
    segments: Tensor,
    *,
    window: int,
    scale: float | None = None,
    impl: Choice | None = None,
) -> Tensor:
    """Attention inside the segments of a map (Liu et al., MixMAE: Mixed and Masked Autoencoder, 2023).

    Args:
        qkv: (B, H, W, 3, heads, D), what the linear layer for queries, keys and values returns, reshaped; contiguous.
            float32, bfloat16, float16, or float64 (reference only).
        table: ((2w-1)^2, heads), the bias by relative position; usually float32 whatever the rest is.
        segments: what `segments_of` returns for the same map and window.
        window: w, in tokens.
        scale: of the products; D^-0.5 if None.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, H, W, heads, D), contiguous, in the dtype of `qkv`. Gradients flow to `qkv` and `table`. Softmax and sums
        are in float32 (float64 for float64). There is no dropout of attention.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    if qkv.dim() != 6 or qkv.shape[3] != 3:
        raise UserError(f"segment_attention: qkv is {tuple(qkv.shape)}, it must be (B, H, W, 3, heads, D)")
    _, height, width, _, heads, _ = qkv.shape
    _check_window("segment_attention", height, width, window)
    check_table("segment_attention", table, window, heads)
    windows = height // window * (width // window)
    if segments.dtype != torch.int32 or segments.shape != (windows, *segments.shape[1:2], 2, window * window):
        raise UserError(
            f"segment_attention: segments is {segments.dtype} {tuple(segments.shape)}, a map of {height}x{width} in "
            f"windows of {window}x{window} needs torch.int32 ({windows}, G, 2, {window * window}) from segments_of"
        )
    return OPERATOR(qkv, table, segments, window=window, scale=scale, impl=impl)


def _check_window(name: str, height: int, width: int, window: int) -> None:
    if height % window or width % window:
        raise UserError(f"{name}: windows of {window}x{window} do not divide a map of {height}x{width}; pad the map")


def _shape_class(qkv: Tensor, table: Tensor, segments: Tensor, *, window: int, **options) -> ShapeClass:
    return qkv.device.type, qkv.dtype, window, qkv.shape[5]


def _cost(qkv: Tensor, table: Tensor, segments: Tensor, *, window: int, **options) -> Cost:
    pairs = int((segments[:, :, 0] >= 0).sum(-1).square().sum())
    once = table.numel() * table.element_size() + segments.numel() * segments.element_size()
    products = qkv.shape[0] * pairs * qkv.shape[4] * qkv.shape[5]
    return attention_cost(qkv, products, once, once + table.numel() * table.element_size())


def _triton_supports(device: str, dtype: torch.dtype, window: int, head_dim: int) -> str | None:
    if refused := attention_in_triton(device, dtype, head_dim):
        return refused
    if window > 32:
        return (
            f"with windows of {window}x{window}, more than 32x32, partial sums of the bias's gradient outgrow the rest"
        )
    return None


OPERATOR = Operator(
    name="segment_attention",
    doc="attention in the segments of large windows, learned relative bias",
    reference=reference.segment_attention,
    shape_class=_shape_class,
    size_names=("window", "head_dim"),
    gradients=("qkv", "table"),
    cases=cases.CASES,
    cost=_cost,
    batched=("qkv",),
    autocast=("qkv",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:segment_attention", _triton_supports),),
)
