"""The colour half of a view in plain PyTorch, batched: every sample with its own parameters. The definition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patch_loss.reference import patchify
from .table import COLUMNS

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, to four digits as in torchvision
# Values of 128/255 and more are inverted. A hair less, so that the rounding of what came before does not decide about
# a gray of exactly 128.
SOLARIZE = 128 / 255 - 1e-6
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue


def blur_taps(sigma_max: float) -> int:
    """Odd length of the blur's window: three standard deviations of the widest blur to either side."""
    return 2 * math.ceil(3 * sigma_max) + 1


def augment(
    pixels: Tensor,
    table: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    sigma_max: float = 0.0,
    gray_weights: str = "luma",
    gray_first: bool = False,
    patch_size: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Arguments and result of `headrace.kernels.augment.augment`; a float64 table is computed and answered in it."""
    column = dict(zip(COLUMNS, table.unbind(1)))
    x = pixels.permute(0, 3, 1, 2).to(table.dtype) / torch.iinfo(pixels.dtype).max

    def grayscale() -> None:
        _apply(x, column["gray"] > 0, lambda part, _: _gray(part, gray_weights).expand_as(part), column["gray"])

    if gray_first:
        grayscale()
    for position in ("first", "second", "third", "fourth"):
        for operation, function in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = (column[position] == operation) & (table[:, operation] != _NEUTRAL[operation])
            _apply(x, chosen, function, table[:, operation])
    if not gray_first:
        grayscale()
    if sigma_max > 0:
        _apply(x, column["sigma"] > 0, lambda part, s: _blur(part, s, blur_taps(sigma_max)), column["sigma"])
    _apply(x, column["solarize"] > 0, lambda part, _: torch.where(part >= SOLARIZE, 1 - part, part), column["solarize"])
    _apply(x, column["flip"] > 0, lambda part, _: part.flip(-1), column["flip"])
    scale = x.new_tensor([1 / s for s in std]).view(1, -1, 1, 1)
    offset = x.new_tensor([-m / s for m, s in zip(mean, std)]).view(1, -1, 1, 1)
    x = torch.addcmul(offset, x, scale)
    dtype = torch.float64 if table.dtype == torch.float64 else dtype
    return patchify(x, patch_size).to(dtype) if patch_size else x.to(dtype, memory_format=torch.channels_last)


def _apply(x: Tensor, chosen: Tensor, function, factors: Tensor) -> None:
    """x[chosen] = function(x[chosen], factors[chosen]); nothing is computed for the others."""
    rows = chosen.nonzero()[:, 0]
    if rows.numel():
        factor = factors[rows].to(x.device).view(-1, 1, 1, 1)
        rows = rows.to(x.device)
        x[rows] = function(x[rows], factor)


def _gray(x, weights="luma"):
    red, green, blue = x.unbind(1)
    if weights == "mean":
        return ((red + green + blue) / 3)[:, None]
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _brightness(x, factor):
    return (x * factor).clamp(0, 1)


def _contrast(x, factor):
    middle = _gray(x).mean((-3, -2, -1), keepdim=True) if x.shape[1] == 3 else x.mean((-2, -1), keepdim=True)
    return _blend(x, middle, factor)


def _saturation(x, factor):
    return _blend(x, _gray(x), factor)


def _hue(x, shift):
    """A turn of the colour circle in HSV; `shift` in turns."""
    value, brightest = x.max(1, keepdim=True)
    chroma = value - x.min(1, keepdim=True).values
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    safe = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        brightest == 0,
        (green - blue) / safe,
        torch.where(brightest == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * shift
    turns = [(n + sector) % 6 for n in (5, 3, 1)]
    return torch.cat([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in turns], 1)


def _blur(x, sigma, taps: int):
    """Separable Gaussian, reflected at the border; weights normalised over the window."""
    radius = taps // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in (-1, -2):
        padding = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        padded = F.pad(x, padding, mode="reflect")
        x = sum(weights[:, k : k + 1] * padded.narrow(axis, k, x.shape[axis]) for k in range(taps))
    return x
