"""The arguments every implementation of biased_attention is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    tokens: int,
    *,
    batch: int = 1,
    heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    bias_dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    hidden: bool = False,
) -> Case:
    """`hidden` hides the first 64 keys from all other queries by a bias of -inf."""

    def arguments():
        generator = torch.Generator().manual_seed(22)
        qkv = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator).to(dtype)
        bias = torch.randn(heads, tokens, tokens, generator=generator)
        if hidden:
            bias[:, 64:, :64] = -torch.inf
        return (qkv, bias.to(bias_dtype)), {"scale": scale}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("n197-d64-bf16", 197, head_dim=64, dtype=_BF16, bias_dtype=_BF16),
    _case("n70-d64", 70, heads=1, head_dim=64),
    _case("n144-fp16", 144, dtype=_HALF),
    _case("n33-batch", 33, batch=3, heads=1),
    _case("n64-half-bias", 64, dtype=_HALF, bias_dtype=_HALF),
    _case("n17", 17, batch=2, heads=3, scale=0.3),
    _case("n260-fp16", 260, heads=1, dtype=_HALF),  # in two passes backward
    _case("n66-hidden", 66, heads=1, hidden=True),
    _case("n2", 2, batch=2),
)
