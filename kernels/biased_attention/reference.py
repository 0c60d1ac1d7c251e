"""Biased attention in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def biased_attention(qkv: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
    """Arguments and result of `headrace.kernels.biased_attention.biased_attention`, computed in at least float32."""
    precision = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = qkv.to(precision).permute(2, 0, 3, 1, 4)  # each (B, heads, N, D)
    scores = q @ k.mT * (qkv.shape[4] ** -0.5 if scale is None else scale) + bias.to(precision)
    return (scores.softmax(-1) @ v).transpose(1, 2).to(qkv.dtype)
