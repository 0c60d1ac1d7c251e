"""HOG in plain PyTorch: the definition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BINS, CELL, PATCH = 9, 8, 16


def gaussian() -> Tensor:
    """(16,) float64: the weight of a row or column of a patch; its outer product with itself sums to one."""
    g = torch.exp(-((torch.arange(PATCH, dtype=torch.float64) - (PATCH - 1) / 2) ** 2) / (2 * CELL**2))
    return g / g.sum()


@torch.no_grad()
def hog(images: Tensor) -> Tensor:
    """Arguments and result of `headrace.kernels.hog.hog`."""
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    batch, channels, height, width = images.shape
    if not batch:
        return images.new_empty(0, height // PATCH * (width // PATCH), channels * BINS * 4)
    # Differences first: what a convolution leaves of a flat area by rounding would be normalised to a histogram of one.
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").flatten(0, 1)
    across, down = padded[..., :-2] - padded[..., 2:], padded[..., :-2, :] - padded[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    bins = (torch.atan2(gx, gy) / math.pi * BINS).floor().long() % BINS
    g = gaussian().to(images).repeat(max(height, width) // PATCH)
    weight = (gx.square() + gy.square()).sqrt() * g[:height, None] * g[:width]
    by_bin = weight.new_zeros(batch * channels, BINS, height, width).scatter_(1, bins[:, None], weight[:, None])
    cells = F.normalize(F.avg_pool2d(by_bin, CELL, divisor_override=1), dim=1)
    cells = cells.view(batch, channels * BINS, height // PATCH, 2, width // PATCH, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * BINS * 4)
