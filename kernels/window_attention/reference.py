"""Window attention in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def offset_index(window: int, device: torch.device | None = None) -> Tensor:
    """(N, N) int64: the row of the bias table for each pair (query, key) of a window's N = window^2 places."""
    place = torch.arange(window * window, device=device)
    y, x = place // window, place % window
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def partition(maps: Tensor, window: int) -> Tensor:
    """(B, H, W, ...) -> (B, windows, N, ...): windows row by row, and so the places inside of them."""
    batch, height, width, *rest = maps.shape
    tiles = maps.reshape(batch, height // window, window, width // window, window, *rest).transpose(2, 3)
    return tiles.reshape(batch, height * width // window**2, window * window, *rest)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B, windows, N, ...) -> (B, H, W, ...): undoes `partition`."""
    batch, _, _, *rest = windows.shape
    tiles = windows.reshape(batch, height // window, width // window, window, window, *rest).transpose(2, 3)
    return tiles.reshape(batch, height, width, *rest)


def regions(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(H, W) int64 on the shifted map: which of the nine pieces a token belongs to that the shift brings together."""

    def band(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place >= size - window).long() + (place >= size - shift).long()

    return 3 * band(height)[:, None] + band(width)


def window_attention(
    qkv: Tensor,
    table: Tensor,
    groups: Tensor | None = None,
    *,
    window: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Arguments and result of `headrace.kernels.window_attention.window_attention`, computed in at least float32."""
    _, height, width, _, _, head_dim = qkv.shape
    precision = torch.promote_types(qkv.dtype, torch.float32)
    shifted = partition(qkv.roll((-shift, -shift), (1, 2)), window)
    q, k, v = shifted.to(precision).permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, N, D)
    scores = q @ k.mT * (head_dim**-0.5 if scale is None else scale)
    # `embedding`, because the gradient of an index adds up in whatever order threads come
    scores = scores + F.embedding(offset_index(window, qkv.device), table.to(precision)).permute(2, 0, 1)
    if shift:
        region = partition(regions(height, width, window, shift, qkv.device)[None], window)[:, :, None]
        scores = scores - 100.0 * (region[..., :, None] != region[..., None, :])
    if groups is not None:
        group = partition(groups.roll((-shift, -shift), (1, 2)), window)[:, :, None]
        scores = scores.masked_fill(group[..., :, None] != group[..., None, :], -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(2, 3)
    return merge(out, window, height, width).roll((shift, shift), (1, 2)).to(qkv.dtype)
