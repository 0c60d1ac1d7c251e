"""Crop and resize on the device: decoded images of any size and boxes -> square uint8 crops, as Pillow makes them.

With antialiasing an output pixel o of a box of length n resized to s is the mean of the pixels x with weights

    w(x) = f((x + 1/2 - c) / max(n/s, 1)),    c = (o + 1/2) n/s,    f: triangle, or cubic with a = -1/2, or Lanczos 3

over those inside the box alone; along rows, rounded to bytes, then along columns, rounded: the pixels of Pillow's
`Image.crop().resize()`, but for what lies half-way between two bytes, and for crops whose columns newer versions of
Pillow take first because that costs less.
Without antialiasing 2 (bilinear) or 4 (bicubic, a = -3/4) taps a side are read however much is shrunk, the box's border
is repeated, and only the result is rounded: pixels of OpenCV's `resize`.

`reference.py` says it in plain PyTorch, image by image; `triton_impl.py` makes all crops of a batch in one launch.
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
        offsets: (N,) int64, the byte at which the image of each crop begins.
        widths: (N,) int32 or int64, the width of that image in pixels.
        boxes: (N, 4) int32 or int64, left, top, width, height in pixels, inside the image: nobody checks.
        size: side of the crops in pixels.
        interpolation: "bilinear", "bicubic" or, with antialiasing, "lanczos".
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Raises:
        UserError: arguments that do not fit together, or an implementation that cannot run them.
    """
    _check(images, offsets, widths, boxes, interpolation, antialias)
    options = {"size": size, "interpolation": interpolation, "antialias": antialias}
    return OPERATOR(images, offsets, widths, boxes, **options, impl=impl)


def _check(images: Tensor, offsets: Tensor, widths: Tensor, boxes: Tensor, interpolation: str, antialias: bool) -> None:
    if images.dtype != torch.uint8 or not images.is_contiguous():
        raise UserError(f"crop_resize: images must be contiguous bytes (torch.uint8), this is {images.dtype}")
    count = len(offsets)
    if offsets.shape != (count,) or widths.shape != (count,) or boxes.shape != (count, 4):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (offsets, widths, boxes))
        raise UserError(f"crop_resize: offsets, widths, boxes must be (N,), (N,), (N, 4), these are {shapes}")
    if interpolation not in RADIUS or interpolation == "lanczos" and not antialias:
        raise UserError(
            f"crop_resize: interpolation is one of {', '.join(RADIUS)}, lanczos with antialiasing; not "
            f"{interpolation!r} with antialias={antialias}"
        )


def _shape_class(
    images: Tensor, offsets: Tensor, widths: Tensor, boxes: Tensor, *, size: int, interpolation: str, **options
) -> ShapeClass:
    return images.device.type, images.dtype, size, RADIUS[interpolation]


def _cost(
    images: Tensor, offsets: Tensor, widths: Tensor, boxes: Tensor, *, size: int, interpolation: str, **options
) -> Cost:
    """The boxes' bytes read once, the crops written once; 6 operations (3 multiplications, 3 sums) a pixel and tap."""
    sides = boxes[:, 2:].double()
    taps = 2 * RADIUS[interpolation] * (sides / size).clamp(min=1)
    rows, columns = sides[:, 1] * size * taps[:, 0], size * size * taps[:, 1]
    return Cost(bytes=int(3 * sides.prod(1).sum()) + 3 * len(boxes) * size**2, flops=int(6 * (rows + columns).sum()))


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
    batched=("offsets", "widths", "boxes"),
    fast=(Implementation("triton", f"{__name__}.triton_impl:crop_resize", _triton_supports),),
)
