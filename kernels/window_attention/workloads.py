"""The sizes of window_attention in training, and what PyTorch offers for it, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from ..registry import Case
from .reference import merge, offset_index, partition, regions


def _workload(id: str, batch: int, side: int, heads: int, window: int, shift: int = 0, grouped: bool = False) -> Case:
    def arguments():
        qkv = torch.randn(batch, side, side, 3, heads, 32, dtype=torch.bfloat16)
        table = 0.02 * torch.randn((2 * window - 1) ** 2, heads)
        groups = torch.randint(1, 3, (1, side, side), dtype=torch.int8)
        tensors = (qkv, table, groups) if grouped else (qkv, table)
        return tensors, {"window": window, "shift": shift, "scale": None}

    return Case(id, arguments)


WORKLOADS = (
    _workload("Swin-B stage 1 shifted B=128", 128, 56, 4, 7, shift=3),
    _workload("Swin-B stage 3 shifted B=128", 128, 14, 16, 7, shift=3),
    _workload("Swin-B stage 1 B=128", 128, 56, 4, 7),
    _workload("Swin-B stage 3 B=128", 128, 14, 16, 7),
    _workload("MixMIM-B stage 4 B=128", 128, 7, 32, 7, grouped=True),
)
# Microseconds on an H200, forward and backward: 1.3 times what bytes alone take. Shifted windows cost what others do.
TARGETS = {
    **{f"Swin-B stage 1{kind} B=128": (125, 217) for kind in (" shifted", "")},
    **{f"Swin-B stage 3{kind} B=128": (31, 55) for kind in (" shifted", "")},
}


def _in_windows(qkv: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B * windows, heads, N, D): with five dimensions SDPA would use none of its fused back ends."""
    return partition(qkv.roll((-shift, -shift), (1, 2)), window).flatten(0, 1).permute(2, 0, 3, 1, 4).unbind()


def _back(out: Tensor, qkv: Tensor, window: int, shift: int) -> Tensor:
    batch, height, width, *_ = qkv.shape
    out = out.transpose(1, 2).unflatten(0, (batch, -1))
    return merge(out, window, height, width).roll((shift, shift), (1, 2))


def pinned(function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """`function` with each back end of SDPA that takes a mask, which refuses what it cannot do: cuDNN a trained one."""

    def pin(backend: SDPBackend) -> Callable[..., Tensor]:
        def attention(*args, **kwargs):
            with sdpa_kernel(backend):
                return function(*args, **kwargs)

        return attention

    names = {"efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}
    return {f"sdpa {name}": pin(getattr(SDPBackend, backend)) for name, backend in names.items()}


def _sdpa(
    qkv: Tensor,
    table: Tensor,
    groups: Tensor | None = None,
    *,
    window: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    batch, height, width, *_ = qkv.shape
    bias = table.to(qkv.dtype)[offset_index(window, qkv.device)].permute(2, 0, 1)[None, None]
    if shift:
        region = partition(regions(height, width, window, shift, qkv.device)[None], window)[:, :, None]
        bias = bias - 100.0 * (region[..., :, None] != region[..., None, :])
    if groups is not None:
        group = partition(groups.roll((-shift, -shift), (1, 2)), window)[:, :, None]
        bias = bias.masked_fill(group[..., :, None] != group[..., None, :], -torch.inf)
    mask = bias.to(qkv.dtype).expand(batch, height * width // window**2, -1, -1, -1).flatten(0, 1)
    out = scaled_dot_product_attention(*_in_windows(qkv, window, shift), attn_mask=mask, scale=scale)
    return _back(out, qkv, window, shift)


def _flex() -> Callable[..., Tensor]:
    """FlexAttention with the table as a tensor that its score function reads, and that gets a gradient."""
    compiled = torch.compile(flex_attention)

    def attention(qkv, table, groups=None, *, window, shift=0, scale=None):
        _, height, width, *_ = qkv.shape
        offset = offset_index(window, qkv.device)
        windows = height * width // window**2
        region = partition(regions(height, width, window, shift, qkv.device)[None], window)[0]
        group = None if groups is None else partition(groups.roll((-shift, -shift), (1, 2)), window).flatten(0, 1)

        def score(value, b, h, i, j):
            value = value + table[offset[i, j], h]
            if shift:
                value = torch.where(region[b % windows, i] == region[b % windows, j], value, value - 100.0)
            if group is not None:
                own = b % group.shape[0]
                value = torch.where(group[own, i] == group[own, j], value, -torch.inf)
            return value

        return _back(compiled(*_in_windows(qkv, window, shift), score, scale=scale), qkv, window, shift)

    return attention


def peers() -> dict[str, Callable[..., Tensor]]:
    """Name -> function with the reference's arguments."""
    return {**pinned(_sdpa), "flex": _flex()}
