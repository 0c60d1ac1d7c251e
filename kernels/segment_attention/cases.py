"""The arguments every implementation of segment_attention is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case
from .reference import segments_of


def _case(
    id: str,
    size: tuple[int, int],
    window: int,
    *,
    cell: int = 1,
    share: float = 0.5,
    count: int = 2,
    shift: int = 0,
    batch: int = 1,
    heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> Case:
    """Groups are drawn for cells of `cell` x `cell` tokens; `share` of them is in group 0."""

    def arguments():
        generator = torch.Generator().manual_seed(23)
        qkv = torch.randn(batch, *size, 3, heads, head_dim, generator=generator).to(dtype)
        table = torch.randn((2 * window - 1) ** 2, heads, generator=generator)
        chance = torch.rand(1, size[0] // cell, size[1] // cell, generator=generator)
        others = torch.randint(1, max(2, count), chance.shape, generator=generator)
        groups = torch.where(chance < share, 0, others).to(torch.int8)
        groups = groups.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        segments = segments_of(groups, window=window, shift=shift, count=count)
        return (qkv, table, segments), {"window": window, "scale": scale}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("w14-bf16", (14, 14), 14, cell=2, dtype=_BF16),
    _case("w8", (8, 8), 8, cell=2, heads=1),
    _case("w12-long-fp16", (12, 12), 12, share=0.95, heads=1, dtype=_HALF),
    _case("w17-fp16", (17, 17), 17, heads=1, dtype=_HALF),  # in two passes backward
    _case("w7-plain", (7, 7), 7, share=1.0, count=1, heads=1),
    _case("w6-one-group-of-two", (6, 6), 6, share=0.0, heads=1, head_dim=64),
    _case("w6-shift-fp16", (6, 12), 6, share=1.0, count=1, shift=3, heads=1, dtype=_HALF),
    _case("w3-three-groups-shift", (3, 6), 3, count=3, shift=1, heads=1, scale=0.3),
    _case("w4-batch", (4, 4), 4, batch=3, heads=1),
    _case("w4-two-heads", (4, 4), 4, heads=2),
)
