"""The colour half of a view in plain torch, batched: every sample with its own parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, to four digits as in torchvision


def blur_taps(sigma_max: float) -> int:
    """Odd length of the blur's window: three standard deviations of the widest blur to either side."""
    return 2 * math.ceil(3 * sigma_max) + 1


def augment_reference(pixels, *, flip, jitter, order, gray, sigma, solarize, sigma_max, mean, std, dtype):
    """See `kernels.augment.augment`."""
    device = pixels.device
    x = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for position in range(4):
        for operation, function in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = (order[:, position] == operation) & (jitter[:, operation] != neutral[operation])
            _apply(x, chosen, function, jitter[:, operation])
    _apply(x, gray, lambda part, _: _luma(part).expand_as(part), sigma)
    _apply(x, sigma > 0, lambda part, s: _blur(part, s, blur_taps(sigma_max)), sigma)
    _apply(x, solarize, lambda part, _: torch.where(part >= 128 / 255, 1 - part, part), sigma)
    _apply(x, flip, lambda part, _: part.flip(-1), sigma)
    scale = torch.tensor([1 / s for s in std], device=device).view(1, 3, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std)], device=device).view(1, 3, 1, 1)
    return torch.addcmul(offset, x, scale).to(dtype, memory_format=torch.channels_last)


def _apply(x, chosen, function, factors) -> None:
    """x[chosen] = function(x[chosen], factors[chosen]); nothing is computed for the others."""
    rows = chosen.nonzero()[:, 0]
    if rows.numel():
        on_device = rows.to(x.device)
        factor = factors[rows].to(x.device).view(-1, 1, 1, 1)
        x[on_device] = function(x[on_device], factor)


def _luma(x):
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _brightness(x, factor):
    return (x * factor).clamp(0, 1)


def _contrast(x, factor):
    return _blend(x, _luma(x).mean((-3, -2, -1), keepdim=True), factor)


def _saturation(x, factor):
    return _blend(x, _luma(x), factor)


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
