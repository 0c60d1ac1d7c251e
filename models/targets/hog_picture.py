"""Histograms of oriented gradients, drawn."""

from __future__ import annotations

import math

import torch

_CELL, _BINS = 8, 9


def hog_picture(histograms: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, L, C * 36) as `headrace.kernels.hog` orders them -> (B, C, 16 rows, 16 columns) in [0, 1].

    Each cell of 8 x 8 pixels has a stroke through its middle for every bin, along the edge that the gradient crosses,
    as bright as the bin is full.
    """
    rows, columns = grid
    cells = histograms.clamp(min=0).unflatten(2, (-1, _BINS, 2, 2)).unflatten(1, grid)
    cells = cells.permute(0, 3, 1, 5, 2, 6, 4).reshape(len(histograms), -1, 2 * rows, 2 * columns, _BINS)
    picture = torch.einsum("bcyxn,nuv->bcyuxv", cells, _strokes().to(cells)).flatten(4).flatten(2, 3)
    return picture / picture.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)


def _strokes() -> torch.Tensor:
    """(9, 8, 8): a soft line for each bin. Bin k holds gradients (gx, gy) with atan2(gx, gy) about pi (k + 1/2) / 9."""
    place = torch.arange(_CELL) - (_CELL - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    angle = torch.arange(_BINS).add(0.5).mul(math.pi / _BINS).view(-1, 1, 1)
    across = x * angle.sin() + y * angle.cos()  # how far a pixel lies from the edge, along the gradient
    return (1 - across.abs()).clamp(min=0)
