"""Crop and resize in plain PyTorch, one image at a time, by a matrix of weights for each side: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = {"bilinear": 1, "bicubic": 2, "lanczos": 3}  # taps to either side of an output pixel that shrinks nothing
# What is half-way between two bytes goes up, as in Pillow, and a hair less does, too: at factors such as 3/2 exactly
# half happens often, and the rounding of sums shall not decide about it.
ROUND = 0.5 + 5e-4


def crop_resize(
    images: Tensor,
    offsets: Tensor,
    widths: Tensor,
    boxes: Tensor,
    *,
    size: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Arguments and result of `headrace.kernels.crop_resize.crop_resize`, computed in float64."""
    flat = images.flatten()
    crops = flat.new_empty(len(boxes), size, size, 3)
    for n, (offset, width, box) in enumerate(zip(offsets.tolist(), widths.tolist(), boxes.tolist())):
        values = _resize(_crop(flat, offset, width, box).double(), size, interpolation, antialias)
        crops[n] = _to_byte(values)
    return crops


def _crop(flat: Tensor, offset: int, width: int, box: list[int]) -> Tensor:
    left, top, columns, rows = box
    strips = flat[offset + top * width * 3 : offset + (top + rows) * width * 3].view(rows, width, 3)
    return strips[:, left : left + columns]


def _resize(crop: Tensor, size: int, interpolation: str, antialias: bool) -> Tensor:
    """(h, w, 3) float64 -> (size, size, 3), not yet rounded."""
    across = weights(crop.shape[1], size, interpolation, antialias).to(crop.device)
    down = weights(crop.shape[0], size, interpolation, antialias).to(crop.device)
    rows = torch.einsum("xw,hwc->hxc", across, crop)
    if antialias:
        rows = _to_byte(rows).double()
    return torch.einsum("yh,hxc->yxc", down, rows)


def _to_byte(values: Tensor) -> Tensor:
    return (values + ROUND).floor().clamp(0, 255).to(torch.uint8)


def weights(length: int, size: int, interpolation: str, antialias: bool) -> Tensor:
    """(size, length) float64: how much each pixel of a side contributes to each output pixel; rows sum to 1."""
    radius = RADIUS[interpolation]
    scale = length / size
    center = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    if antialias:
        stretch = max(scale, 1.0)
        x = torch.arange(length, dtype=torch.float64)
        first, last = (center - radius * stretch + 0.5).trunc(), (center + radius * stretch + 0.5).trunc()
        found = _filter((x + 0.5 - center) / stretch, interpolation, -0.5) * ((x >= first) & (x < last))
        return found / found.sum(1, keepdim=True)
    x = (center - 0.5).floor() + torch.arange(1 - radius, 1 + radius)
    tap = _filter(x + 0.5 - center, interpolation, -0.75)
    return torch.zeros(size, length, dtype=torch.float64).scatter_add_(1, x.long().clamp(0, length - 1), tap)


def _filter(distance: Tensor, interpolation: str, a: float) -> Tensor:
    d = distance.abs()
    if interpolation == "bilinear":
        return (1 - d).clamp(min=0)
    if interpolation == "lanczos":
        return torch.where(d < 3, torch.sinc(d) * torch.sinc(d / 3), 0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))
