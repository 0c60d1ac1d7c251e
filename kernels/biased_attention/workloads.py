"""The sizes of biased_attention in training, and what PyTorch offers for it, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from ..registry import Case
from ..window_attention.workloads import pinned


def _workload(id: str, batch: int, tokens: int, heads: int) -> Case:
    def arguments():
        qkv = torch.randn(batch, tokens, 3, heads, 64, dtype=torch.bfloat16)
        return (qkv, 0.02 * torch.randn(heads, tokens, tokens)), {"scale": None}

    return Case(id, arguments)


WORKLOADS = (
    _workload("BEiT-B B=128", 128, 197, 12),
    _workload("HiViT-B B=128", 128, 196, 8),
)
# Microseconds on an H200, forward and backward.
TARGETS = {"BEiT-B B=128": (50, 180)}


def _sdpa(qkv: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = bias.to(qkv.dtype)[None].expand(len(qkv), -1, -1, -1)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _flex() -> Callable[..., Tensor]:
    compiled = torch.compile(flex_attention)

    def attention(qkv: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
        def score(value, b, h, i, j):
            return value + bias[h, i, j]

        return compiled(*qkv.permute(2, 0, 3, 1, 4).unbind(), score, scale=scale).transpose(1, 2)

    return attention


def peers() -> dict[str, Callable[..., Tensor]]:
    """Name -> function with the reference's arguments."""
    return {**pinned(_sdpa), "flex": _flex()}
