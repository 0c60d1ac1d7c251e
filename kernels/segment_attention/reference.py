"""Segment attention in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..window_attention.reference import offset_index, partition, regions


def segments_of(groups: Tensor, *, window: int, shift: int = 0, count: int = 2) -> Tensor:
    """Arguments and result of `headrace.kernels.segment_attention.segments_of`, unchecked."""
    _, height, width = groups.shape
    token = torch.arange(height * width, device=groups.device).reshape(1, height, width)
    token, kind = (partition(maps.roll((-shift, -shift), (1, 2)), window)[0] for maps in (token, groups.long()))
    if shift:
        # A window has one or two of the three bands of regions in its rows, and so in its columns.
        region = partition(regions(height, width, window, shift, groups.device)[None], window)[0]
        kind = 4 * kind + 2 * (region // 3 == 2) + (region % 3 == 2)
        count = 4 * count
    member = kind[:, None] == torch.arange(count, device=groups.device)[:, None]  # (windows, count, N)
    place = (~member).to(torch.uint8).sort(dim=-1, stable=True).indices  # members first, in their order
    real = torch.arange(window * window, device=groups.device) < member.sum(-1, keepdim=True)
    tokens = token[:, None].expand_as(place).gather(-1, place)
    return torch.stack((tokens.where(real, -1), place.where(real, 0)), dim=2).int()


def segment_attention(
    qkv: Tensor, table: Tensor, segments: Tensor, *, window: int, scale: float | None = None
) -> Tensor:
    """Arguments and result of `headrace.kernels.segment_attention.segment_attention`, in at least float32."""
    batch, height, width, _, heads, head_dim = qkv.shape
    precision = torch.promote_types(qkv.dtype, torch.float32)
    tokens, places = segments.flatten(0, 1).long().unbind(1)  # each (segments, N)
    real = tokens >= 0
    gathered = qkv.to(precision).flatten(1, 2)[:, tokens.clamp(min=0)]
    q, k, v = gathered.permute(3, 0, 1, 4, 2, 5)  # each (B, segments, heads, N, D)
    row = offset_index(window, qkv.device)[places[:, :, None], places[:, None, :]]
    bias = F.embedding(row, table.to(precision))  # whose gradient, unlike that of an index, has the same bits each time
    scores = q @ k.mT * (head_dim**-0.5 if scale is None else scale) + bias.permute(0, 3, 1, 2)
    scores = scores.masked_fill(~real[:, None, None, :], -torch.inf)
    # Queries that do not exist get any finite scores: what is all -inf would be NaN.
    out = scores.masked_fill(~real[:, None, :, None], 0).softmax(-1) @ v
    # Where each token's result is; all that do not exist claim one number too many.
    index = torch.where(real, tokens, height * width).flatten()
    found = torch.zeros(height * width + 1, dtype=torch.int64, device=qkv.device)
    found = found.scatter(0, index, torch.arange(index.numel(), device=qkv.device))[:-1]
    out = out.transpose(2, 3).flatten(1, 2)[:, found]
    return out.reshape(batch, height, width, heads, head_dim).to(qkv.dtype)
