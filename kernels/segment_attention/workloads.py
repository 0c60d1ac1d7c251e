"""The sizes of segment_attention in training, and what PyTorch offers for it, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..registry import Case
from ..window_attention.reference import offset_index
from ..window_attention.workloads import pinned
from .reference import segments_of


def _workload(id: str, batch: int, side: int, heads: int, window: int, cell: int = 0, shift: int = 0) -> Case:
    """`cell` is the side of a cell of MixMIM's mask in tokens; 0 for a map without a mask."""

    def arguments():
        qkv = torch.randn(batch, side, side, 3, heads, 32, dtype=torch.bfloat16)
        table = 0.02 * torch.randn((2 * window - 1) ** 2, heads)
        if cell:
            cells = (side // cell) ** 2
            mask = (torch.randperm(cells) < cells // 2).view(1, side // cell, side // cell)
            groups = mask.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        else:
            groups = torch.zeros(1, side, side)
        segments = segments_of(groups.to(torch.int8), window=window, shift=shift, count=2 if cell else 1)
        return (qkv, table, segments), {"window": window, "scale": None}

    return Case(id, arguments)


WORKLOADS = (
    _workload("MixMIM-B stage 3 B=128", 128, 14, 16, 14, cell=2),
    _workload("MixMIM-B stage 1 B=128", 128, 56, 4, 14, cell=8),
    _workload("SimMIM-L stage 3 shifted B=128", 128, 12, 24, 12),
    _workload("SimMIM-L stage 1 shifted B=128", 128, 48, 6, 12, shift=6),
)
# Microseconds on an H200, forward and backward.
TARGETS = {"MixMIM-B stage 3 B=128": (35, 85)}


def _sdpa(qkv: Tensor, table: Tensor, segments: Tensor, *, window: int, scale: float | None = None) -> Tensor:
    """Whole windows, with a mask between their segments."""
    batch, height, width, *_ = qkv.shape
    windows, count, _, tokens = segments.shape
    number, place = segments.long().unbind(2)
    place = torch.where(number >= 0, place, tokens).flatten(1)  # what is no token goes one place too far

    def by_place(values: Tensor) -> Tensor:
        return values.new_zeros(windows, tokens + 1).scatter(1, place, values.flatten(1))[:, :tokens]

    token = by_place(number)
    owner = by_place(torch.arange(count, device=qkv.device)[:, None].expand_as(number))
    bias = table.to(qkv.dtype)[offset_index(window, qkv.device)].permute(2, 0, 1)[None]
    mask = bias.masked_fill(owner[:, None, :, None] != owner[:, None, None, :], -torch.inf)
    mask = mask[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)
    q, k, v = qkv.flatten(1, 2)[:, token].flatten(0, 1).permute(2, 0, 3, 1, 4)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
    out = out.unflatten(0, (batch, windows)).flatten(1, 2)[:, token.flatten().argsort()]
    return out.unflatten(1, (height, width))


def peers() -> dict[str, Callable[..., Tensor]]:
    """Name -> function with the reference's arguments."""
    return pinned(_sdpa)
