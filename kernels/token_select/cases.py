"""The arguments every implementation of token_select is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    visible: int,
    places: int,
    width: int,
    *,
    batch: int = 2,
    prefix: int = 1,
    dtype: torch.dtype = torch.float32,
    parameters: torch.dtype = torch.float32,
) -> Case:
    """`parameters` is the dtype of mask token and positions."""

    def arguments():
        generator = torch.Generator().manual_seed(60)
        tokens = torch.randn(batch, prefix + visible, width, generator=generator).to(dtype)
        mask_token = torch.randn(width, generator=generator).to(parameters)
        positions = torch.randn(places, width, generator=generator).to(parameters)
        restore = torch.rand(batch, places, generator=generator).argsort(1)
        return (tokens, mask_token, positions, restore), {"prefix": prefix}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("mae-bf16", 4, 16, 64, dtype=_BF16),
    _case("mae", 4, 16, 64),
    _case("mae-fp16", 4, 16, 32, dtype=_HALF),
    _case("all-fp16", 4, 16, 32, dtype=_HALF, parameters=_HALF),
    _case("hivit-no-class-token", 5, 20, 48, prefix=0),
    _case("two-class-tokens", 3, 9, 24, prefix=2),
    _case("nothing-visible", 0, 6, 16),
    _case("nothing-hidden", 9, 9, 16),
    _case("larger-batch", 3, 7, 16, batch=9),
)
