"""Crop and resize in plain PyTorch, one image at a time, by a matrix of weights for each side: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = {"bilinear": 1, "bicubic": 2, "lanczos": 3}  # taps to either side of an output pixel that shrinks nothing
# What is half-way between two bytes goes up, as in Pillow, and a hair less does, too: at factors such as 3/2 exactly
# half happens often, and the rounding of sums shall not decide about it.
ROUND = 0.5 + 5e-4
# JFIF: red's share of Cr, green's of Cb and of Cr, blue's of Cb.
CR_RED, CB_GREEN, CR_GREEN, CB_BLUE = 1.402, 0.344136286, 0.714136286, 1.772


def crop_resize(
    images: Tensor,
    offsets: Tensor,
    widths: Tensor,
    boxes: Tensor,
    heights: Tensor | None = None,
    *,
    size: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Arguments and result of `headrace.kernels.crop_resize.crop_resize`, computed in float64."""
    flat = images.flatten()
    crops = flat.new_empty(len(boxes), size, size, 3)
    for n, (offset, width, box) in enumerate(zip(offsets.tolist(), widths.tolist(), boxes.tolist())):
        if heights is None:
            values = _resize(_crop(flat, offset, width, box).double(), size, interpolation, antialias)
        else:
            values = _resize_planes(flat, offset, (int(heights[n]), width), box, size, interpolation)
        crops[n] = _to_byte(values)
    return crops


def _crop(flat: Tensor, offset: int, width: int, box: list[int], channels: int = 3) -> Tensor:
    """(h, w, channels): the box, of rows of which those above it need not be in memory."""
    left, top, columns, rows = box
    begin = offset + top * width * channels
    return flat[begin : begin + rows * width * channels].view(rows, width, channels)[:, left : left + columns]


def _resize(crop: Tensor, size: int, interpolation: str, antialias: bool) -> Tensor:
    """(h, w, 3) float64 -> (size, size, 3), not yet rounded."""
    across = weights(crop.shape[1], size, interpolation, antialias).to(crop.device)
    down = weights(crop.shape[0], size, interpolation, antialias).to(crop.device)
    rows = torch.einsum("xw,hwc->hxc", across, crop)
    if antialias:
        rows = _to_byte(rows).double()
    return torch.einsum("yh,hxc->yxc", down, rows)


def _resize_planes(
    flat: Tensor, offsets: list[int], sides: tuple[int, int], box: list[int], size: int, interpolation: str
) -> Tensor:
    """A box of planes -> (size, size, 3) RGB, not yet rounded. `sides`: the image's height and width."""
    left, top, columns, rows = box
    across, down = (weights(length, size, interpolation, True).to(flat.device) for length in (columns, rows))
    luma = down @ _crop(flat, offsets[0], sides[1], box, 1)[..., 0].double() @ across.T
    taken = [half_taps(start, length, whole) for start, length, whole in
             ((left, columns, sides[1]), (top, rows, sides[0]))]  # fmt: skip
    (first_x, across_half), (first_y, down_half) = taken
    half = [first_x, first_y, across_half.shape[1], down_half.shape[1]]
    across, down = across @ across_half.to(flat.device), down @ down_half.to(flat.device)
    cb, cr = (
        down @ _crop(flat, offset, (sides[1] + 1) // 2, half, 1)[..., 0].double() @ across.T - 128
        for offset in offsets[1:]
    )
    return torch.stack([luma + CR_RED * cr, luma - CB_GREEN * cb - CR_GREEN * cr, luma + CB_BLUE * cb], -1)


def half_taps(start: int, length: int, whole: int) -> tuple[int, Tensor]:
    """Chroma at half the resolution, along one side -> as many samples as luma has, by 3/4 of the nearer and 1/4 of the
    farther one; the border is repeated.

    (the first sample that is used, (length, samples) float64) for pixels of luma from `start` on, of `whole`.
    """
    pixel = start + torch.arange(length)
    near = pixel // 2
    far = (near - 1 + 2 * (pixel % 2)).clamp(0, (whole + 1) // 2 - 1)
    first, last = int(torch.minimum(near, far).min()), int(torch.maximum(near, far).max())
    taps = torch.zeros(length, last - first + 1, dtype=torch.float64)
    for place, share in ((near, 0.75), (far, 0.25)):
        taps[torch.arange(length), place - first] += share
    return first, taps


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
