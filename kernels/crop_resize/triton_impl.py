"""Crop and resize in Triton: one program per tile of a crop, both passes in one; nothing but the crop is written.

A program walks over the rows that its tile reads, resizes each along x, rounds it to bytes as Pillow does between its
passes, and adds it to the tile with its weight along y. Neighbouring tiles resize shared rows twice; in exchange no
intermediate of varying size exists, and all crops of a batch are one launch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UserError
from ..aot import Build
from ..tiles import tile
from . import reference
from .reference import RADIUS

_ROUND = tl.constexpr(reference.ROUND)
DEFAULT = {"ROWS": 8, "COLUMNS": 32, "num_warps": 4}
CANDIDATES = {
    "crop": [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows, columns in ((4, 32), (8, 32), (16, 32), (8, 64), (16, 16))
        for warps in (2, 4, 8)
    ]
}


@triton.jit
def _taps(output, length, scale, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """(center, stretch of the filter, first pixel, the one after the last) of each output pixel of one side."""
    center = (output.to(tl.float32) + 0.5) * scale
    if ANTIALIAS:
        stretch = tl.maximum(scale, 1.0)
        first = tl.maximum((center - RADIUS * stretch + 0.5).to(tl.int32), 0)
        last = tl.minimum((center + RADIUS * stretch + 0.5).to(tl.int32), length)
    else:
        stretch = 1.0
        first = tl.floor(center - 0.5).to(tl.int32) + (1 - RADIUS)
        last = first + 2 * RADIUS
    return center, stretch, first, last


@triton.jit
def _weight(k, center, stretch, first, last, length, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Weight (not normalised) and index of the k-th tap."""
    x = first + k
    d = tl.abs(x.to(tl.float32) + 0.5 - center) / stretch
    if RADIUS == 1:
        weight = tl.maximum(1.0 - d, 0.0)
    else:
        A: tl.constexpr = -0.5 if ANTIALIAS else -0.75
        near = ((A + 2) * d - (A + 3)) * d * d + 1.0
        far = A * (((d - 5) * d + 8) * d - 4)
        weight = tl.where(d < 1, near, tl.where(d < 2, far, 0.0))
    return tl.where(x < last, weight, 0.0), tl.minimum(tl.maximum(x, 0), length - 1)


@triton.jit
def _to_byte(x):
    return tl.minimum(tl.maximum(tl.floor(x + _ROUND), 0.0), 255.0)


@triton.jit
def _crop_kernel(
    images,
    offsets,
    widths,
    boxes,
    crops,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    ACROSS: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = ACROSS * ((SIZE + ROWS - 1) // ROWS)
    program = tl.program_id(0)
    # 64 bit: the images of a data set are more bytes than an int32 can count.
    crop = (program // TILES).to(tl.int64)
    y = program % TILES // ACROSS * ROWS + tl.arange(0, ROWS)
    x = program % TILES % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
    left, top = tl.load(boxes + crop * 4).to(tl.int64), tl.load(boxes + crop * 4 + 1).to(tl.int64)
    width, height = tl.load(boxes + crop * 4 + 2).to(tl.int32), tl.load(boxes + crop * 4 + 3).to(tl.int32)
    pitch = tl.load(widths + crop).to(tl.int32)
    corner = images + tl.load(offsets + crop) + (top * pitch + left) * 3

    scale_x, scale_y = width.to(tl.float32) / SIZE, height.to(tl.float32) / SIZE
    # What a tile has beyond the crop repeats its last pixel, and is not stored.
    center_x, stretch_x, first_x, last_x = _taps(tl.minimum(x, SIZE - 1), width, scale_x, RADIUS, ANTIALIAS)
    center_y, stretch_y, first_y, last_y = _taps(tl.minimum(y, SIZE - 1), height, scale_y, RADIUS, ANTIALIAS)
    if ANTIALIAS:
        taps_x = (2.0 * RADIUS * stretch_x).to(tl.int32) + 2
        taps_y = (2.0 * RADIUS * stretch_y).to(tl.int32) + 2
    else:
        taps_x, taps_y = 2 * RADIUS, 2 * RADIUS
    total_x = tl.zeros((COLUMNS,), tl.float32)
    for k in range(taps_x):
        total_x += _weight(k, center_x, stretch_x, first_x, last_x, width, RADIUS, ANTIALIAS)[0]
    share_x = 1.0 / total_x
    total_y = tl.zeros((ROWS,), tl.float32)
    r = tl.zeros((ROWS, COLUMNS), tl.float32)
    g, b = r, r
    for j in range(taps_y):
        weight_y, row = _weight(j, center_y, stretch_y, first_y, last_y, height, RADIUS, ANTIALIAS)
        total_y += weight_y
        row_r = tl.zeros((ROWS, COLUMNS), tl.float32)
        row_g, row_b = row_r, row_r
        for k in range(taps_x):
            weight_x, column = _weight(k, center_x, stretch_x, first_x, last_x, width, RADIUS, ANTIALIAS)
            pixel = corner + (row[:, None] * pitch + column[None, :]) * 3
            row_r += weight_x[None, :] * tl.load(pixel).to(tl.float32)
            row_g += weight_x[None, :] * tl.load(pixel + 1).to(tl.float32)
            row_b += weight_x[None, :] * tl.load(pixel + 2).to(tl.float32)
        row_r, row_g, row_b = row_r * share_x[None, :], row_g * share_x[None, :], row_b * share_x[None, :]
        if ANTIALIAS:
            row_r, row_g, row_b = _to_byte(row_r), _to_byte(row_g), _to_byte(row_b)
        r += weight_y[:, None] * row_r
        g += weight_y[:, None] * row_g
        b += weight_y[:, None] * row_b
    share_y = (1.0 / total_y)[:, None]
    inside = (y[:, None] < SIZE) & (x[None, :] < SIZE)
    target = crops + (crop * (SIZE * SIZE) + y[:, None] * SIZE + x[None, :]) * 3
    tl.store(target, _to_byte(r * share_y).to(tl.uint8), mask=inside)
    tl.store(target + 1, _to_byte(g * share_y).to(tl.uint8), mask=inside)
    tl.store(target + 2, _to_byte(b * share_y).to(tl.uint8), mask=inside)


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
    """Arguments and result of `headrace.kernels.crop_resize.crop_resize`, without Lanczos."""
    if not all(tensor.is_contiguous() for tensor in (images, offsets, widths, boxes)):
        raise UserError("crop_resize: its tensors must be contiguous; call .contiguous() where they are made")
    crops = images.new_empty((len(boxes), size, size, 3))
    if len(boxes):
        options = tile("crop_resize", f"crop s{size} {interpolation}", DEFAULT)
        tiles = triton.cdiv(size, options["ROWS"]) * triton.cdiv(size, options["COLUMNS"])
        with torch.cuda.device_of(images):
            _crop_kernel[(len(boxes) * tiles,)](
                *(images, offsets, widths, boxes, crops),
                SIZE=size,
                RADIUS=RADIUS[interpolation],
                ANTIALIAS=antialias,
                **options,
                enable_fp_fusion=True,
            )
    return crops


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: crops of photographs, of CIFAR's images, and without antialiasing."""
    for size, interpolation, antialias in (
        (224, "bilinear", True),
        (224, "bicubic", True),
        (32, "bilinear", True),
        (192, "bilinear", False),
        (224, "bicubic", False),
    ):
        yield Build(
            f"crop s{size} {interpolation}{'' if antialias else ' plain'}",
            _crop_kernel,
            {"images": "*u8", "offsets": "*i64", "widths": "*i32", "boxes": "*i32", "crops": "*u8"},
            {
                "SIZE": size,
                "RADIUS": RADIUS[interpolation],
                "ANTIALIAS": antialias,
                "ROWS": DEFAULT["ROWS"],
                "COLUMNS": DEFAULT["COLUMNS"],
            },
            ("images", "offsets", "widths", "boxes", "crops"),
            DEFAULT["num_warps"],
        )
