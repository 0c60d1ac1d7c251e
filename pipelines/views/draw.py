"""InputSpec + (seed, epoch, ids, sizes) -> ViewParams: all random decisions of a batch, before any pixel is touched."""

from __future__ import annotations

import math

import torch

from ..rng import uniform
from ..spec import PATCH_JITTER, InputSpec, RandomErasing, ViewParams, ViewSpec
from .randaugment import draw_policy

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop; then the largest centred crop of an allowed shape
_CROP = 2 * CROP_ATTEMPTS + 2
_PLACES = ((1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))  # (column, row), centre first
_DRAWS = _CROP + 1 + 1 + 4 + 4 + 1 + 2 + 1  # crop, flip, jitter?, factors, order, gray, blur, solarise


def draw_views(
    inputs: InputSpec, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor, sizes: torch.Tensor
) -> dict[str, ViewParams]:
    """Parameters of every view of a batch.

    ids: (B,) int64 sample ids; sizes: (B, 2) int64, height and width of the upright images in pixels; epoch: of all
    samples, or (B,) int64 of each.
    """
    return {view.name: _draw_view(view, seed, epoch, ids, sizes) for view in inputs.views}


def stream_name(view: ViewSpec, copy: int, kind: str = "") -> str:
    return f"view/{view.draws or view.name}/{copy}{kind}"


def _draw_view(view: ViewSpec, seed: int, epoch: int, ids: torch.Tensor, sizes: torch.Tensor) -> ViewParams:
    def stream(count: int, kind: str = "") -> torch.Tensor:
        """(count, B, draws): each kind of draw has streams of its own, so that one more leaves the others alone."""
        return uniform(seed, [stream_name(view, copy, kind) for copy in range(view.count)], epoch, ids, count)

    draws = stream(_DRAWS)
    crop, flip, jittered, factors, order, gray, blur, solarize = draws.split([_CROP, 1, 1, 4, 4, 1, 2, 1], dim=-1)
    height, width = (sizes[:, side].double().expand(draws.shape[:2]) for side in (0, 1))
    resized = torch.full((*draws.shape[:2], 2), view.size, dtype=torch.int32)
    offset = torch.zeros_like(resized)
    if view.crop == "center":
        box = center_crop(height, width, view.center_fraction)
    elif view.crop == "random":
        box = random_resized_crop(crop, height, width, view.scale, view.ratio)
    else:
        box = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width, height], dim=-1).to(torch.int32)
        resized = window_size(height, width, view)
        room = resized + 2 * view.padding - view.size
        offset = ((stream(2, "/window") * (room + 1)).floor() - view.padding).to(torch.int32)
    sigma = _between(blur[..., 1], *view.blur_sigma)
    order = order.argsort(dim=-1)
    angle = torch.zeros(draws.shape[:2])
    if view.rotate:
        angle = _between(stream(1, "/rotate")[..., 0], -view.rotate, view.rotate).float()
    policy = erased = patches = dropped = None
    if view.randaugment is not None:
        policy = draw_policy(stream(5 * view.randaugment.operations, "/randaugment"), view.randaugment)
    if view.erasing is not None:
        erased = erased_box(stream(5, "/erasing"), view.size, view.erasing)
    if view.parts == "patches":
        patches = patch_boxes(stream(18, "/patches"), view.size)
    if view.channel_drop:
        u = stream(view.channels, "/channels")
        dropped = (u < view.channel_drop) & (u < u.amax(-1, keepdim=True))
    return ViewParams(
        crop=box,
        resized=resized,
        offset=offset,
        flip=flip[..., 0] < view.flip,
        angle=angle,
        jitter=_jitter(factors, view).float(),
        order=torch.where(jittered < view.jitter, order, -1).to(torch.int8),
        gray=gray[..., 0] < view.gray,
        sigma=torch.where(blur[..., 0] < view.blur, sigma, 0.0).float(),
        solarize=solarize[..., 0] < view.solarize,
        policy=policy,
        erased=erased,
        patches=patches,
        dropped=dropped,
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


def window_size(height: torch.Tensor, width: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    """(..., 2) int32 width and height after the resize that comes before a window; image sides (...,) in pixels.

    The shorter side becomes `view.resize`, the other one keeps the shape, cut to a whole pixel as in torchvision.
    """
    if view.squash:
        return torch.full((*height.shape, 2), view.resize, dtype=torch.int32)
    short = torch.minimum(height, width)
    target = (
        short.clamp(min=view.size - 2 * view.padding) if view.resize is None else torch.full_like(short, view.resize)
    )
    # times a quotient may fall a hair below a whole number, times and then divided does not
    return torch.stack([(side * target / short).floor() for side in (width, height)], dim=-1).to(torch.int32)


def erased_box(u: torch.Tensor, size: int, erasing: RandomErasing) -> torch.Tensor:
    """(..., 4) int32 left, top, width, height from uniform draws u (..., 5); all 0 where nothing is erased."""
    area = _between(u[..., 1], *erasing.area) * size**2
    aspect = _between(u[..., 2], *map(math.log, erasing.ratio)).exp()
    height, width = ((side.sqrt().round().clamp(1, size)) for side in (area * aspect, area / aspect))
    left, top = (u[..., 3] * (size - width + 1)).floor(), (u[..., 4] * (size - height + 1)).floor()
    box = torch.stack([left, top, width, height], dim=-1)
    return torch.where(u[..., :1] < erasing.chance, box, 0).to(torch.int32)


def patch_boxes(u: torch.Tensor, size: int) -> torch.Tensor:
    """(..., 9, 2) int32 left, top of nine squares of a view of `size` px, from uniform draws u (..., 18).

    Relative Location's layout (arXiv 1505.05192, in OpenSelfSup's form): cells of ``size // 3`` px, each one pixel
    wider where the view has it, since the cells' ends are inclusive; in each a square `PATCH_JITTER` px smaller than
    the grid at a uniform place. The centre comes first, then the others column by column: top left, middle left,
    bottom left, top, bottom, top right, middle right, bottom right. At 255 px: cells of 86 or 85, squares of 64.
    """
    cell = size // 3
    column, row = torch.tensor(_PLACES, dtype=torch.float64).unbind(-1)
    corners = []
    for place, draw in zip((column, row), u.unflatten(-1, (9, 2)).unbind(-1)):
        room = (size - place * cell).clamp(max=cell + 1) - (cell - PATCH_JITTER)
        corners.append(place * cell + (draw * (room + 1)).floor())
    return torch.stack(corners, dim=-1).to(torch.int32)
