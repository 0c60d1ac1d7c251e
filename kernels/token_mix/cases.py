"""The arguments every implementation of token_mix is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    batch: int,
    tokens: int,
    width: int,
    *,
    halve: bool = False,
    positions: torch.dtype | None = torch.float32,
    dtype: torch.dtype = torch.float32,
    hidden: float = 0.5,
) -> Case:
    """`positions` is their dtype, None for none; `hidden` the share of masked tokens."""

    def arguments():
        generator = torch.Generator().manual_seed(70)
        x = torch.randn(batch, tokens, width, generator=generator).to(dtype)
        table = None if positions is None else torch.randn(tokens, width, generator=generator).to(positions)
        mask = torch.rand(1, tokens, generator=generator) < hidden
        return (x, table, mask), {"halve": halve}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("mix-bf16", 4, 20, 128, dtype=_BF16),
    _case("unmix-bf16", 4, 9, 192, halve=True, positions=None, dtype=_BF16),
    _case("mix", 4, 20, 128),
    _case("mix-fp16", 2, 16, 64, dtype=_HALF),
    _case("mix-all-fp16", 4, 7, 48, dtype=_HALF, positions=_HALF),
    _case("mix-without-positions", 6, 5, 24, positions=None),
    _case("unmix", 4, 9, 192, halve=True, positions=None),
    _case("unmix-fp16", 8, 4, 20, halve=True, positions=None, dtype=_HALF),
    _case("wide", 2, 3, 2500),
    _case("nothing-hidden", 2, 6, 16, hidden=0.0),
    _case("everything-hidden", 2, 6, 16, hidden=1.0),
)
