"""InputSpec + (seed, epoch, ids, sizes) -> ViewParams: all random decisions of a batch, before any pixel is touched."""

from __future__ import annotations

import math

import torch

from .rng import uniform
from .spec import InputSpec, ViewParams, ViewSpec

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop; then the largest centred crop of an allowed shape
_CROP = 2 * CROP_ATTEMPTS + 2
_DRAWS = _CROP + 1 + 1 + 4 + 4 + 1 + 2 + 1  # crop, flip, jitter?, factors, order, gray, blur, solarise


def draw_views(
    inputs: InputSpec, seed: int, epoch: int, ids: torch.Tensor, sizes: torch.Tensor
) -> dict[str, ViewParams]:
    """Parameters of every view of a batch.

    ids: (B,) int64 sample ids; sizes: (B, 2) int64, height and width of the upright images in pixels.
    """
    return {view.name: _draw_view(view, seed, epoch, ids, sizes) for view in inputs.views}


def _draw_view(view: ViewSpec, seed: int, epoch: int, ids: torch.Tensor, sizes: torch.Tensor) -> ViewParams:
    streams = [
        uniform(seed, f"view/{view.draws or view.name}/{copy}", epoch, ids, _DRAWS) for copy in range(view.count)
    ]
    draws = torch.stack(streams)  # (count, B, _DRAWS)
    crop, flip, jittered, factors, order, gray, blur, solarize = draws.split([_CROP, 1, 1, 4, 4, 1, 2, 1], dim=-1)
    height, width = (sizes[:, side].double().expand(draws.shape[:2]) for side in (0, 1))
    if view.crop == "center":
        box = center_crop(height, width, view.center_fraction)
    else:
        box = random_resized_crop(crop, height, width, view.scale, view.ratio)
    sigma = _between(blur[..., 1], *view.blur_sigma)
    order = order.argsort(dim=-1)
    return ViewParams(
        crop=box,
        resized=torch.full_like(box[..., 2:], view.size),
        offset=torch.zeros_like(box[..., 2:]),
        flip=flip[..., 0] < view.flip,
        angle=torch.zeros(draws.shape[:2]),
        jitter=_jitter(factors, view).float(),
        order=torch.where(jittered < view.jitter, order, -1).to(torch.int8),
        gray=gray[..., 0] < view.gray,
        sigma=torch.where(blur[..., 0] < view.blur, sigma, 0.0).float(),
        solarize=solarize[..., 0] < view.solarize,
    )


def _between(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + u * (high - low)


def _jitter(u: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    """Uniform draws (..., 4) -> factors of brightness, contrast, saturation in [max(0, 1-s), 1+s] and a hue shift."""
    strengths = (view.brightness, view.contrast, view.saturation)
    scaled = [_between(u[..., i], max(0.0, 1 - s), 1 + s) for i, s in enumerate(strengths)]
    return torch.stack([*scaled, _between(u[..., 3], -view.hue, view.hue)], dim=-1)


def center_crop(height: torch.Tensor, width: torch.Tensor, fraction: float) -> torch.Tensor:
    """(..., 4) int32 left, top, width, height of the middle square; its side is `fraction` of the shorter side."""
    side = (torch.minimum(height, width) * fraction).round().clamp(min=1)
    left, top = ((width - side) / 2).floor(), ((height - side) / 2).floor()
    return torch.stack([left, top, side, side], dim=-1).to(torch.int32)


def random_resized_crop(
    u: torch.Tensor, height: torch.Tensor, width: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> torch.Tensor:
    """(..., 4) int32 boxes from uniform draws u (..., 22) and image sides (...,) in pixels.

    Area uniform in `scale`, log of width / height uniform in `ratio`; the first of ten attempts that fits is taken,
    at a uniform integer offset; else the largest centred crop whose shape is within `ratio`. All attempts are made at
    once. Distribution as in Inception's crop (arXiv 1409.4842) and torchvision's `RandomResizedCrop.get_params`.
    """
    area = _between(u[..., :CROP_ATTEMPTS], *scale) * (height * width)[..., None]
    aspect = _between(u[..., CROP_ATTEMPTS : 2 * CROP_ATTEMPTS], math.log(ratio[0]), math.log(ratio[1])).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width[..., None]) & (heights > 0) & (heights <= height[..., None])
    first = fits.to(torch.int8).argmax(dim=-1, keepdim=True)
    w, h = widths.gather(-1, first)[..., 0], heights.gather(-1, first)[..., 0]
    left = (u[..., -2] * (width - w + 1)).floor()
    top = (u[..., -1] * (height - h + 1)).floor()

    fallback_w = torch.minimum(width, (height * ratio[1]).round()).clamp(min=1)
    fallback_h = torch.minimum(height, (width / ratio[0]).round()).clamp(min=1)
    fallback = torch.stack(
        [((width - fallback_w) / 2).floor(), ((height - fallback_h) / 2).floor(), fallback_w, fallback_h], dim=-1
    )
    box = torch.stack([left, top, w, h], dim=-1)
    return torch.where(fits.any(dim=-1, keepdim=True), box, fallback).to(torch.int32)
