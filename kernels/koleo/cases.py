"""The arguments every implementation of koleo is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    rows: int,
    width: int,
    group: int | None = None,
    dtype: torch.dtype = torch.float32,
    nearest: int = 1,
) -> Case:
    def arguments():
        generator = torch.Generator().manual_seed(60)
        return (torch.randn(rows, width, generator=generator).to(dtype),), {"group": group or rows, "nearest": nearest}

    return Case(id, arguments)


CASES = (
    _case("bf16", 24, 40, dtype=torch.bfloat16),
    _case("fp32", 24, 40),
    _case("fp16", 20, 32, dtype=torch.float16),
    _case("groups", 48, 24, group=16),
    _case("three-neighbours", 24, 20, group=12, nearest=3),
    _case("pairs", 10, 12, group=2),
    _case("several-blocks", 75, 130),
    _case("one-group-larger-than-a-block", 90, 20, group=45),
)
