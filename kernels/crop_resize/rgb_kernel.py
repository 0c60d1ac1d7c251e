"""Crops of RGB in Triton: one program per tile of a crop, both passes in one; nothing but the crop is written.

A program walks over the rows of the image that its tile reads, a few at a time: it resizes each along x, rounds it to
bytes as Pillow does between its passes, and adds it to all rows of the tile with its weights along y. Tiles above one
another resize shared rows twice; in exchange no intermediate of varying size exists, and all crops of a batch are one
launch. A box begins at any byte: threads read whole words, four for four pixels, and shift them into place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .taps import byte, first_tap, shifted, store_tile, tile_of, to_byte, weight_at


@triton.jit
def _weight_x(x, center, shrink, outside, width, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Weight of the pixel x of the box, what is `outside` (left, right) of it included."""
    weight = weight_at((x.to(tl.float32) + 0.5 - center) * shrink, RADIUS, ANTIALIAS)
    if not ANTIALIAS:
        weight += tl.where(x == 0, outside[0], 0.0) + tl.where(x == width - 1, outside[1], 0.0)
    return tl.where(x < width, weight, 0.0)


@triton.jit
def crop_kernel(
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
    crop, first_y, first_x, left, top, width, height = tile_of(boxes, SIZE, ROWS, COLUMNS)
    y, x = first_y + tl.arange(0, ROWS), first_x + tl.arange(0, COLUMNS)
    pitch = tl.load(widths + crop).to(tl.int32)
    corner = (images + tl.load(offsets + crop) + (top.to(tl.int64) * pitch + left) * 3).to(tl.int64)
    words, skew = (corner & -4).to(tl.pointer_type(tl.uint32)), (corner & 3).to(tl.int32)

    scale_x, scale_y = width.to(tl.float32) / SIZE, height.to(tl.float32) / SIZE
    stretch_x, stretch_y = scale_x * 0.0 + 1.0, scale_y * 0.0 + 1.0
    if ANTIALIAS:
        stretch_x, stretch_y = tl.maximum(scale_x, 1.0), tl.maximum(scale_y, 1.0)
    shrink_x, shrink_y = 1.0 / stretch_x, 1.0 / stretch_y
    # What a tile has beyond the crop repeats its last pixel, and is not stored.
    center_x = (tl.minimum(x, SIZE - 1).to(tl.float32) + 0.5) * scale_x
    center_y = (tl.minimum(y, SIZE - 1).to(tl.float32) + 0.5) * scale_y
    from_x = first_tap(center_x, stretch_x, RADIUS, ANTIALIAS)
    outside = (0.0, 0.0)
    if ANTIALIAS:
        # Rounding may put `from_x` a pixel too far to the left, where the weight is next to nothing.
        groups = (tl.ceil(2.0 * RADIUS * stretch_x).to(tl.int32) + 4) // 4
        begin = first_tap((first_y + 0.5) * scale_y, stretch_y, RADIUS, ANTIALIAS)
        bottom = (tl.minimum(first_y + ROWS, SIZE) - 0.5) * scale_y
        end = tl.minimum((bottom + RADIUS * stretch_y + 0.5).to(tl.int32), height)
    else:
        groups, begin, end = 1, 0, ROWS * 2 * RADIUS
        left_of, right_of = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
        for k in tl.static_range(2 * RADIUS):
            weight = weight_at((from_x + k).to(tl.float32) + 0.5 - center_x, RADIUS, ANTIALIAS)
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
            weight_y = weight_at((row + 0.5 - center_y) * shrink_y, RADIUS, ANTIALIAS)
        else:
            own = (tl.minimum(first_y + j // (2 * RADIUS), SIZE - 1) + 0.5) * scale_y
            row = first_tap(own, stretch_y, RADIUS, ANTIALIAS) + j % (2 * RADIUS)
            weight_y = weight_at(row + 0.5 - own, RADIUS, ANTIALIAS)
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
                shifted(first, second, bits),
                shifted(second, third, bits),
                shifted(third, fourth, bits),
            )
            at_x = from_x + 4 * group
            w0 = _weight_x(at_x, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w1 = _weight_x(at_x + 1, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w2 = _weight_x(at_x + 2, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            w3 = _weight_x(at_x + 3, center_x, shrink_x, outside, width, RADIUS, ANTIALIAS)
            row_r += w0 * byte(first, 0) + w1 * byte(first, 3) + w2 * byte(second, 2) + w3 * byte(third, 1)
            row_g += w0 * byte(first, 1) + w1 * byte(second, 0) + w2 * byte(second, 3) + w3 * byte(third, 2)
            row_b += w0 * byte(first, 2) + w1 * byte(second, 1) + w2 * byte(third, 0) + w3 * byte(third, 3)
        row_r, row_g, row_b = row_r * share_x, row_g * share_x, row_b * share_x
        if ANTIALIAS:
            row_r, row_g, row_b = to_byte(row_r), to_byte(row_g), to_byte(row_b)
        r += weight_y[:, None] * row_r[None, :]
        g += weight_y[:, None] * row_g[None, :]
        b += weight_y[:, None] * row_b[None, :]
    share_y = (1.0 / total_y)[:, None]
    r, g, b = to_byte(r * share_y), to_byte(g * share_y), to_byte(b * share_y)
    store_tile(crops, crop, r, g, b, first_x, y, x, SIZE, WIDE, ROWS, COLUMNS)
