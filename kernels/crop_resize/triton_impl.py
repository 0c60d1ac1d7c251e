"""Crop and resize in Triton: one program per tile of a crop, both passes in one; nothing but the crop is written.

A program walks over the rows of the image that its tile reads, a few at a time: it resizes each along x, rounds it to
bytes as Pillow does between its passes, and adds it to all rows of the tile with its weights along y. Tiles above one
another resize shared rows twice; in exchange no intermediate of varying size exists, and all crops of a batch are one
launch. A box begins at any byte: threads read whole words, four for four pixels, and shift them into place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UserError
from ..aot import Build
from ..augment.interleaved import four_columns, interleaved
from ..tiles import tile
from . import reference
from .reference import RADIUS

_ROUND = tl.constexpr(reference.ROUND)
CANDIDATES = {
    "crop": [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows in (4, 8, 16)
        for columns, warps in ((32, 1), (64, 1), (64, 2), (128, 4))
    ]
}


def _default(size: int) -> dict[str, int]:
    """One warp; threads have all rows of a column or two, so that none waits for another before the last step."""
    return {"ROWS": 8, "COLUMNS": 64 if size > 32 else 32, "num_warps": 1}


@triton.jit
def _filter(distance, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Weight, not normalised, of a pixel at so many pixels of the narrower side."""
    d = tl.abs(distance)
    if RADIUS == 1:
        return tl.maximum(1.0 - d, 0.0)
    else:
        A: tl.constexpr = -0.5 if ANTIALIAS else -0.75
        near = ((A + 2) * d - (A + 3)) * d * d + 1.0
        far = A * (((d - 5) * d + 8) * d - 4)
        return tl.where(d < 1, near, tl.where(d < 2, far, 0.0))


@triton.jit
def _first(center, stretch, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """The first pixel that has a weight. Without antialiasing it may lie outside, and the border is repeated there."""
    if ANTIALIAS:
        return tl.maximum((center - RADIUS * stretch + 0.5).to(tl.int32), 0)
    else:
        return tl.floor(center - 0.5).to(tl.int32) + (1 - RADIUS)


@triton.jit
def _weight_x(x, center, shrink, outside, width, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Weight of the pixel x of the box, what is `outside` (left, right) of it included."""
    weight = _filter((x.to(tl.float32) + 0.5 - center) * shrink, RADIUS, ANTIALIAS)
    if not ANTIALIAS:
        weight += tl.where(x == 0, outside[0], 0.0) + tl.where(x == width - 1, outside[1], 0.0)
    return tl.where(x < width, weight, 0.0)


@triton.jit
def _shifted(low, high, bits):
    """The word that begins so many bits, fewer than 32, after the beginning of `low`."""
    return (((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> bits).to(tl.uint32)


@triton.jit
def _byte(word, number: tl.constexpr):
    return ((word >> (8 * number)) & 255).to(tl.float32)


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
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    ACROSS: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = ACROSS * ((SIZE + ROWS - 1) // ROWS)
    program = tl.program_id(0)
    # 64 bit: the images of a data set are more bytes than an int32 can count.
    crop = (program // TILES).to(tl.int64)
    first_y, first_x = program % TILES // ACROSS * ROWS, program % TILES % ACROSS * COLUMNS
    y, x = first_y + tl.arange(0, ROWS), first_x + tl.arange(0, COLUMNS)
    left, top = tl.load(boxes + crop * 4).to(tl.int64), tl.load(boxes + crop * 4 + 1).to(tl.int64)
    width, height = tl.load(boxes + crop * 4 + 2).to(tl.int32), tl.load(boxes + crop * 4 + 3).to(tl.int32)
    pitch = tl.load(widths + crop).to(tl.int32)
    corner = (images + tl.load(offsets + crop) + (top * pitch + left) * 3).to(tl.int64)
    words, skew = (corner & -4).to(tl.pointer_type(tl.uint32)), (corner & 3).to(tl.int32)

    scale_x, scale_y = width.to(tl.float32) / SIZE, height.to(tl.float32) / SIZE
    stretch_x, stretch_y = scale_x * 0.0 + 1.0, scale_y * 0.0 + 1.0
    if ANTIALIAS:
        stretch_x, stretch_y = tl.maximum(scale_x, 1.0), tl.maximum(scale_y, 1.0)
    shrink_x, shrink_y = 1.0 / stretch_x, 1.0 / stretch_y
    # What a tile has beyond the crop repeats its last pixel, and is not stored.
    center_x = (tl.minimum(x, SIZE - 1).to(tl.float32) + 0.5) * scale_x
    center_y = (tl.minimum(y, SIZE - 1).to(tl.float32) + 0.5) * scale_y
    from_x = _first(center_x, stretch_x, RADIUS, ANTIALIAS)
    outside = (0.0, 0.0)
    if ANTIALIAS:
        # Rounding may put `from_x` a pixel too far to the left, where the weight is next to nothing.
        groups = (tl.ceil(2.0 * RADIUS * stretch_x).to(tl.int32) + 4) // 4
        begin = _first((first_y + 0.5) * scale_y, stretch_y, RADIUS, ANTIALIAS)
        bottom = (tl.minimum(first_y + ROWS, SIZE) - 0.5) * scale_y
        end = tl.minimum((bottom + RADIUS * stretch_y + 0.5).to(tl.int32), height)
    else:
        groups, begin, end = 1, 0, ROWS * 2 * RADIUS
        left_of, right_of = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
        for k in tl.static_range(2 * RADIUS):
            weight = _filter((from_x + k).to(tl.float32) + 0.5 - center_x, RADIUS, ANTIALIAS)
            left_of += tl.where(from_x + k < 0, weight, 0.0)
            right_of += tl.where(from_x + k >= width, weight, 0.0)
        outside = (left_of, right_of)
        from_x = tl.maximum(from_x, 0)
    total_x = tl.zeros((COLUMNS,), tl.float32)
    for group in range(groups):
        for k in tl.static_range(4):
            total_x += _weight_x(from_x + 4 * group + k, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
    share_x = 1.0 / total_x

    total_y = tl.zeros((ROWS,), tl.float32)
    r = tl.zeros((ROWS, COLUMNS), tl.float32)
    g, b = r, r
    for j in range(begin, end):
        if ANTIALIAS:
            row = j
            weight_y = _filter((row + 0.5 - center_y) * shrink_y, RADIUS, ANTIALIAS)
        else:
            own = (tl.minimum(first_y + j // (2 * RADIUS), SIZE - 1) + 0.5) * scale_y
            row = _first(own, stretch_y, RADIUS, ANTIALIAS) + j % (2 * RADIUS)
            weight_y = _filter(row + 0.5 - own, RADIUS, ANTIALIAS)
            weight_y = tl.where(tl.arange(0, ROWS) == j // (2 * RADIUS), weight_y, 0.0)
            row = tl.minimum(tl.maximum(row, 0), height - 1)
        total_y += weight_y
        row_begin = skew + row * (pitch * 3)
        last = (row_begin + width * 3 - 1) >> 2  # word of the box
        at = row_begin + from_x * 3
        word, bits = at >> 2, ((at & 3) * 8).to(tl.uint64)
        row_r = tl.zeros((COLUMNS,), tl.float32)
        row_g, row_b = row_r, row_r
        for group in range(groups):
            # r0 g0 b0 r1 | g1 b1 r2 g2 | b2 r3 g3 b3, and up to three bytes before and after
            first = tl.load(words + word, mask=word <= last, other=0)
            second = tl.load(words + word + 1, mask=word + 1 <= last, other=0)
            third = tl.load(words + word + 2, mask=word + 2 <= last, other=0)
            fourth = tl.load(words + word + 3, mask=word + 3 <= last, other=0)
            word += 3
            first, second, third = (
                _shifted(first, second, bits),
                _shifted(second, third, bits),
                _shifted(third, fourth, bits),
            )
            at_x = from_x + 4 * group
            w0 = _weight_x(at_x, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w1 = _weight_x(at_x + 1, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w2 = _weight_x(at_x + 2, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w3 = _weight_x(at_x + 3, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            row_r += w0 * _byte(first, 0) + w1 * _byte(first, 3) + w2 * _byte(second, 2) + w3 * _byte(third, 1)
            row_g += w0 * _byte(first, 1) + w1 * _byte(second, 0) + w2 * _byte(second, 3) + w3 * _byte(third, 2)
            row_b += w0 * _byte(first, 2) + w1 * _byte(second, 1) + w2 * _byte(third, 0) + w3 * _byte(third, 3)
        row_r, row_g, row_b = row_r * share_x, row_g * share_x, row_b * share_x
        if ANTIALIAS:
            row_r, row_g, row_b = _to_byte(row_r), _to_byte(row_g), _to_byte(row_b)
        r += weight_y[:, None] * row_r[None, :]
        g += weight_y[:, None] * row_g[None, :]
        b += weight_y[:, None] * row_b[None, :]
    share_y = (1.0 / total_y)[:, None]
    r, g, b = _to_byte(r * share_y), _to_byte(g * share_y), _to_byte(b * share_y)
    if WIDE:  # 16 pixels are three times 16 bytes; `crops` are words
        pixel = r.to(tl.uint32) | (g.to(tl.uint32) << 8) | (b.to(tl.uint32) << 16)
        p0, p1, p2, p3 = four_columns(tl.reshape(pixel, (ROWS * COLUMNS // 4, 4)))
        shape: tl.constexpr = (ROWS * COLUMNS // 16, 4)
        first, second, third = interleaved(
            tl.reshape(p0 | (p1 << 24), shape),
            tl.reshape((p1 >> 8) | (p2 << 16), shape),
            tl.reshape((p2 >> 16) | (p3 << 8), shape),
            4,
        )
        across = first_x // 16 + tl.arange(0, COLUMNS // 16)
        inside = (y < SIZE)[:, None] & (across < SIZE // 16)[None, :]
        target = tl.reshape((y * (SIZE // 16))[:, None] + across[None, :], (ROWS * COLUMNS // 16, 1))
        inside = tl.reshape(inside, (ROWS * COLUMNS // 16, 1))
        target = crops + crop * (SIZE * SIZE * 3 // 4) + target * 12 + tl.arange(0, 4)[None, :]
        tl.store(target, first, mask=inside)
        tl.store(target + 4, second, mask=inside)
        tl.store(target + 8, third, mask=inside)
    else:
        inside = (y[:, None] < SIZE) & (x[None, :] < SIZE)
        target = crops + (crop * (SIZE * SIZE) + y[:, None] * SIZE + x[None, :]) * 3
        tl.store(target, r.to(tl.uint8), mask=inside)
        tl.store(target + 1, g.to(tl.uint8), mask=inside)
        tl.store(target + 2, b.to(tl.uint8), mask=inside)


def _in_words(images: Tensor) -> Tensor:
    """The images where their last word lies in memory as a whole: the same tensor, or a copy."""
    storage = images.untyped_storage().nbytes()
    missing = -(images.storage_offset() + images.numel()) % 4
    if images.storage_offset() + images.numel() + missing <= storage:
        return images
    return torch.nn.functional.pad(images.flatten(), (0, -images.numel() % 4))


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
    images = _in_words(images)
    if len(boxes):
        wide = size % 16 == 0
        options = tile("crop_resize", f"crop s{size} {interpolation}", _default(size))
        tiles = triton.cdiv(size, options["ROWS"]) * triton.cdiv(size, options["COLUMNS"])
        with torch.cuda.device_of(images):
            _crop_kernel[(len(boxes) * tiles,)](
                *(images, offsets, widths, boxes, crops.flatten().view(torch.int32) if wide else crops),
                SIZE=size,
                RADIUS=RADIUS[interpolation],
                ANTIALIAS=antialias,
                WIDE=wide,
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
            {"images": "*u8", "offsets": "*i64", "widths": "*i32", "boxes": "*i32", "crops": "*i32"},
            {
                "SIZE": size,
                "RADIUS": RADIUS[interpolation],
                "ANTIALIAS": antialias,
                "WIDE": True,
                "ROWS": _default(size)["ROWS"],
                "COLUMNS": _default(size)["COLUMNS"],
            },
            ("images", "offsets", "widths", "boxes", "crops"),
            _default(size)["num_warps"],
        )
