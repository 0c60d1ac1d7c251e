"""RandAugment (arXiv 1909.13719) in timm's "increasing" variant: what is drawn, and its operations on batches.

Fifteen operations whose effect grows with a level from 0 to 10. Arithmetic is Pillow's, so results are within one grey
level of it on any device. Geometric operations are bilinear; shears leave the first row or column where it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..spec import RandAugment

# name -> magnitude at level 0 and 10, and whether its sign is drawn
OPERATIONS: dict[str, tuple[float, float, bool]] = {
    "autocontrast": (0, 0, False),
    "equalize": (0, 0, False),
    "invert": (0, 0, False),
    "rotate": (0, 30, True),  # degrees, clockwise
    "posterize": (4, 0, False),  # bits that stay, rounded up
    "solarize": (256, 0, False),  # grey level from which values are inverted
    "solarize_add": (0, 110, False),  # grey levels, whole, added to values below 128
    "color": (0, 0.9, True),  # this and the next three: factor 1 + magnitude
    "contrast": (0, 0.9, True),
    "brightness": (0, 0.9, True),
    "sharpness": (0, 0.9, True),
    "shear_x": (0, 0.3, True),  # columns a row
    "shear_y": (0, 0.3, True),
    "translate_x": (0, 0.45, True),  # share of the side
    "translate_y": (0, 0.45, True),
}
NAMES = tuple(OPERATIONS)


def draw_policy(u: torch.Tensor, spec: RandAugment) -> torch.Tensor:
    """(..., operations, 2) float32 index in `NAMES`, or -1, and magnitude, from uniform draws u (..., 5 operations)."""
    which, done, radius, phase, sign = u.unflatten(-1, (spec.operations, 5)).unbind(-1)
    operation = (which * len(NAMES)).long()
    normal = (-2 * (1 - radius).log()).sqrt() * (2 * torch.pi * phase).cos()  # Box and Muller
    level = (spec.level + spec.spread * normal).clamp(0, 10)
    low, high, signed = torch.tensor(list(OPERATIONS.values()), dtype=u.dtype)[operation].unbind(-1)
    magnitude = low + (high - low) * level / 10
    magnitude = torch.where((signed > 0) & (sign < 0.5), -magnitude, magnitude)
    magnitude = torch.where(operation == NAMES.index("posterize"), magnitude.ceil(), magnitude)
    magnitude = torch.where(operation == NAMES.index("solarize_add"), magnitude.floor(), magnitude)
    chosen = torch.where(done < spec.chance, operation, -1)
    return torch.stack([chosen.to(u.dtype), magnitude], dim=-1).float()


def rand_augment(pixels: torch.Tensor, policy: torch.Tensor, fill: tuple[int, int, int]) -> torch.Tensor:
    """pixels (N, S, S, 3) uint8 on any device, policy (N, operations, 2) on the CPU -> the same shape, new memory."""
    pixels = pixels.clone()
    for operation, magnitude in zip(policy[..., 0].unbind(1), policy[..., 1].unbind(1)):
        for index, name in enumerate(NAMES):
            rows = (operation == index).nonzero()[:, 0]
            if len(rows):
                on_device = rows.to(pixels.device)
                factor = magnitude[rows].to(pixels.device).view(-1, 1, 1, 1)
                pixels[on_device] = _apply(name, pixels[on_device], factor, fill)
    return pixels


def rotate(pixels: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """pixels (N, S, S, 3) uint8 turned clockwise by degrees (N,): nearest neighbour, black corners."""
    columns, rows = _turned(pixels, degrees.view(-1, 1, 1))
    side = pixels.shape[1]
    column, row = columns.floor().long(), rows.floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return _at(pixels, row, column) * inside[..., None]


def _apply(name: str, x: torch.Tensor, magnitude: torch.Tensor, fill: tuple[int, int, int]) -> torch.Tensor:
    if name == "autocontrast":
        low, high = x.amin((1, 2), keepdim=True).double(), x.amax((1, 2), keepdim=True).double()
        scale = 255 / (high - low).clamp(min=1)
        return torch.where(high > low, (x * scale - low * scale).clamp(0, 255).to(torch.uint8), x)
    if name == "equalize":
        return _equalize(x)
    if name == "invert":
        return 255 - x
    if name == "posterize":
        step = 2 ** (8 - magnitude.int())
        return (x.int() // step * step).to(torch.uint8)
    if name == "solarize":
        return torch.where(x < magnitude, x, 255 - x)
    if name == "solarize_add":
        return torch.where(x < 128, (x + magnitude).clamp(max=255).to(torch.uint8), x)
    if name == "color":
        return _blend(_luma(x), x, magnitude)
    if name == "contrast":
        return _blend((_luma(x).double().mean((1, 2), keepdim=True) + 0.5).floor(), x, magnitude)
    if name == "brightness":
        return _blend(torch.zeros_like(x), x, magnitude)
    if name == "sharpness":
        return _blend(_smooth(x), x, magnitude)
    return _bilinear(x, *_source(name, x, magnitude.view(-1, 1, 1)), fill)


def _blend(degenerate: torch.Tensor, x: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    degenerate = degenerate.float()
    return (degenerate + (1 + magnitude) * (x - degenerate)).clamp(0, 255).to(torch.uint8)


def _luma(x: torch.Tensor) -> torch.Tensor:
    red, green, blue = x.int().split(1, dim=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(x: torch.Tensor) -> torch.Tensor:
    """The 3x3 mean with a fivefold centre; the outermost pixels stay."""
    planes = x.permute(0, 3, 1, 2).float()
    kernel = planes.new_ones(1, 1, 3, 3)
    kernel[..., 1, 1] = 5
    inner = F.conv2d(planes.flatten(0, 1)[:, None], kernel).unflatten(0, planes.shape[:2])[:, :, 0]
    planes[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).floor()
    return planes.permute(0, 2, 3, 1)


def _equalize(x: torch.Tensor) -> torch.Tensor:
    """Each channel's levels spread by its cumulative histogram, which leaves out half a step and the last level."""
    planes = x.permute(0, 3, 1, 2).flatten(2).long()  # (N, 3, S*S)
    counts = planes.new_zeros(*planes.shape[:2], 256).scatter_add_(2, planes, torch.ones_like(planes))
    last = counts.gather(2, planes.amax(2, keepdim=True))
    step = (planes.shape[2] - last) // 255
    table = ((counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels = torch.where(step > 0, table.gather(2, planes), planes)
    return levels.view(*planes.shape[:2], *x.shape[1:3]).permute(0, 2, 3, 1).to(torch.uint8)


def _grid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of the columns (1, 1, S) and rows (1, S, 1)."""
    centres = torch.arange(x.shape[1], device=x.device, dtype=torch.float64) + 0.5
    return centres[None, None], centres[None, :, None]


def _turned(x: torch.Tensor, degrees: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in x each pixel of an image turned clockwise comes from: columns and rows (N, S, S)."""
    angle, middle = degrees.double().to(x.device).deg2rad(), x.shape[1] / 2
    column, row = (axis - middle for axis in _grid(x))
    cosine, sine = angle.cos(), angle.sin()
    return cosine * column + sine * row + middle, cosine * row - sine * column + middle


def _source(name: str, x: torch.Tensor, magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "rotate":
        return _turned(x, magnitude)
    magnitude = magnitude.double()
    column, row = torch.broadcast_tensors(*_grid(x), magnitude)[:2]
    if name == "shear_x":
        return column + magnitude * row, row
    if name == "shear_y":
        return column, row + magnitude * column
    shift = magnitude * x.shape[1]
    return (column + shift, row) if name == "translate_x" else (column, row + shift)


def _bilinear(x: torch.Tensor, column: torch.Tensor, row: torch.Tensor, fill: tuple[int, int, int]) -> torch.Tensor:
    """x at (column, row), as Pillow does it: taps stop at the border, and places beyond it have the colour `fill`."""
    side = x.shape[1]
    inside = ((column >= 0) & (column < side) & (row >= 0) & (row < side))[..., None]
    left, top = (column - 0.5).floor(), (row - 0.5).floor()
    right, low = (column - 0.5 - left)[..., None].float(), (row - 0.5 - top)[..., None].float()
    columns = [(left.long() + k).clamp(0, side - 1) for k in (0, 1)]
    rows = [(top.long() + k).clamp(0, side - 1) for k in (0, 1)]
    upper, lower = (
        torch.lerp(_at(x, r, columns[0]).float(), _at(x, r, columns[1]).float(), right.expand(*right.shape[:3], 3))
        for r in rows
    )
    mixed = torch.lerp(upper, lower, low.expand_as(upper))
    return torch.where(inside, mixed, mixed.new_tensor(fill)).to(torch.uint8)


def _at(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """x[n, row[n], column[n]] with places beyond the border moved to it: (N, S, S, 3)."""
    side = x.shape[1]
    row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
    samples = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    return x[samples, row, column]
