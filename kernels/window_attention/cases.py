"""The arguments every implementation of window_attention is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    size: tuple[int, int],
    window: int,
    *,
    shift: int = 0,
    grouped: int = 0,
    batch: int = 1,
    heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> Case:
    """`grouped` is the first dimension of the groups, 0 for none."""

    def arguments():
        generator = torch.Generator().manual_seed(21)
        qkv = torch.randn(batch, *size, 3, heads, head_dim, generator=generator).to(dtype)
        table = torch.randn((2 * window - 1) ** 2, heads, generator=generator)
        # Ids without a 0 among them: padding must not pass for a group.
        groups = torch.randint(1, 3, (grouped, *size), generator=generator, dtype=torch.int8)
        tensors = (qkv, table, groups) if grouped else (qkv, table)
        return tensors, {"window": window, "shift": shift, "scale": scale}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("w7-shift-bf16", (14, 14), 7, shift=3, dtype=_BF16),
    _case("w7", (7, 14), 7, batch=2, heads=1),
    _case("w7-shift", (14, 7), 7, shift=3, heads=1),
    _case("w7-groups-fp16", (7, 7), 7, grouped=1, batch=2, dtype=_HALF),
    _case("w6-shift-fp16", (6, 12), 6, shift=3, heads=1, dtype=_HALF),
    _case("w8-d64", (8, 8), 8, head_dim=64, heads=1),
    _case("w4-groups-of-each", (4, 4), 4, grouped=2, batch=2),
    _case("w4-groups-and-shift", (8, 8), 4, shift=1, grouped=1, heads=1, scale=0.3),
    _case("w2-three-heads", (2, 4), 2, heads=3),
)
