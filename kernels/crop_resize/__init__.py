"""Crop and resize on the device: decoded images of any size and boxes -> square uint8 crops, as Pillow makes them.

With antialiasing an output pixel o of a box of length n resized to s is the mean of the pixels x with weights

    w(x) = f((x + 1/2 - c) / max(n/s, 1)),    c = (o + 1/2) n/s,    f: triangle, or cubic with a = -1/2, or Lanczos 3

over those inside the box alone; along rows, rounded to bytes, then along columns, rounded: the pixels of Pillow's
`Image.crop().resize()`, but for what lies half-way between two bytes, and for crops whose columns newer versions of
Pillow take first because that costs less.
Without antialiasing 2 (bilinear) or 4 (bicubic, a = -3/4) taps a side are read however much is shrunk, the box's border
is repeated, and only the result is rounded: pixels of OpenCV's `resize`.

Images may be planes, luma and chroma at half the resolution (JFIF's full-range YCbCr, 4:2:0). Chroma is then taken
through libjpeg's upsampling, 3/4 of the nearer sample and 1/4 of the farther one along each side, and RGB is made of
the resized planes and rounded, once: what the loaders' threads make of `Planes`, to a level.

`reference.py` says it in plain PyTorch, image by image; `triton_impl.py` makes all crops of a batch in one launch, by
`rgb_kernel.py` or `plane_kernel.py`, which share `taps.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference
from .reference import RADIUS


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
    impl: Choice | None = None,
) -> Tensor:
    """(N, size, size, 3) uint8.

    Args:
        images: uint8, contiguous, of any shape: the bytes of decoded RGB images, height x width x 3 each, one after the
            other. One (n, h, w, 3) tensor is such a buffer. Triton's kernel reads words of four bytes: a tensor whose
            storage ends in the midst of one is copied at every call.
        offsets: (N,) int64, the byte at which the image of each crop begins; (N, 3) of planes, those of luma, Cb and
            Cr. Rows that no crop reads may be missing: an offset is then where its image or plane would begin, be it
            below 0. Of chroma a box takes the rows from (top - 1) // 2 to (top + height) // 2, if there are.
        widths: (N,) int32 or int64, the width of that image in pixels.
        boxes: (N, 4) int32 or int64, left, top, width, height in pixels, inside the image: nobody checks.
        heights: (N,) int32 or int64, the height of that image in pixels; images are planes where it is given.
        size: side of the crops in pixels.
        interpolation: "bilinear", "bicubic" or, with antialiasing, "lanczos".
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Raises:
        UserError: arguments that do not fit together, or an implementation that cannot run them.
    """
    _check(images, offsets, widths, boxes, heights, interpolation, antialias)
    options = {"size": size, "interpolation": interpolation, "antialias": antialias}
    return OPERATOR(images, offsets, widths, boxes, heights, **options, impl=impl)


def _check(
    images: Tensor,
    offsets: Tensor,
    widths: Tensor,
    boxes: Tensor,
    heights: Tensor | None,
    interpolation: str,
    antialias: bool,
) -> None:
    if images.dtype != torch.uint8 or not images.is_contiguous():
        raise UserError(f"crop_resize: images must be contiguous bytes (torch.uint8), this is {images.dtype}")
    count = len(offsets)
    wanted = {"offsets": (count,), "widths": (count,), "boxes": (count, 4)}
    found = {"offsets": tuple(offsets.shape), "widths": tuple(widths.shape), "boxes": tuple(boxes.shape)}
    words = "(N,), (N,), (N, 4)"
    if heights is not None:
        wanted |= {"offsets": (count, 3), "heights": (count,)}
        found["heights"], words = tuple(heights.shape), "(N, 3), (N,), (N, 4), (N,) of planes"
    if found != wanted:
        raise UserError(
            f"crop_resize: {', '.join(found)} must be {words}, these are {', '.join(map(str, found.values()))}"
        )
    if interpolation not in RADIUS or interpolation == "lanczos" and not antialias:
        raise UserError(
            f"crop_resize: interpolation is one of {', '.join(RADIUS)}, lanczos with antialiasing; not "
            f"{interpolation!r} with antialias={antialias}"
        )
    if heights is not None and (interpolation == "lanczos" or not antialias):
        raise UserError(
            f"crop_resize: planes are resized by bilinear or bicubic with antialiasing, not by {interpolation!r} "
            f"with antialias={antialias}; make RGB of them first"
        )


def _shape_class(images: Tensor, *others: Tensor | None, size: int, interpolation: str, **options) -> ShapeClass:
    return images.device.type, images.dtype, size, RADIUS[interpolation]


def _cost(
    images: Tensor,
    offsets: Tensor,
    widths: Tensor,
    boxes: Tensor,
    heights: Tensor | None = None,
    *,
    size: int,
    interpolation: str,
    **options,
) -> Cost:
    """The boxes' bytes read once, the crops written once; 2 operations a byte of the boxes, or of what is in between,
    and tap: 3 bytes a pixel of RGB, 1.5 of planes."""
    sides, bytes_ = boxes[:, 2:].double(), 3 if heights is None else 1.5
    taps = 2 * RADIUS[interpolation] * (sides / size).clamp(min=1)
    rows, columns = sides[:, 1] * size * taps[:, 0], size * size * taps[:, 1]
    return Cost(
        bytes=int(bytes_ * sides.prod(1).sum()) + 3 * len(boxes) * size**2,
        flops=int(2 * bytes_ * (rows + columns).sum()),
    )


def _triton_supports(device: str, dtype: torch.dtype, size: int, radius: int) -> str | None:
    return without_triton(device) or ("it has no Lanczos filter" if radius == RADIUS["lanczos"] else None)


OPERATOR = Operator(
    name="crop_resize",
    doc="crops of decoded images, resized as Pillow or OpenCV do",
    reference=reference.crop_resize,
    shape_class=_shape_class,
    size_names=("size", "radius"),
    gradients=(),
    cases=cases.CASES,
    cost=_cost,
    batched=("offsets", "widths", "boxes", "heights"),
    fast=(Implementation("triton", f"{__name__}.triton_impl:crop_resize", _triton_supports),),
)
