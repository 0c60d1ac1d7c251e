"""Crops of planes in Triton, luma and chroma at half the resolution: the walk of `rgb_kernel` over the rows of both.

A step of it takes two rows of luma and the next one of chroma, which with the one before makes chroma for both. Along
a row chroma is not upsampled: the weights of four pixels of luma are taken through the upsampling by 3 and 1, to four
samples of chroma at most. A word is four pixels of one plane. Nothing is rounded before the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import reference
from .taps import byte, first_tap, shifted, store_tile, tile_of, to_byte, weight_at

_CR_RED, _CB_GREEN = tl.constexpr(reference.CR_RED), tl.constexpr(reference.CB_GREEN)
_CR_GREEN, _CB_BLUE = tl.constexpr(reference.CR_GREEN), tl.constexpr(reference.CB_BLUE)


@triton.jit
def _weight(distance, behind, RADIUS: tl.constexpr):
    """Of a pixel at that distance from the center, not normalised; 0 from the distance of what lies `behind` the box
    on. Both are in pixels of the narrower side."""
    return tl.where(distance < behind, weight_at(distance, RADIUS, True), 0.0)


@triton.jit
def _of_chroma(w0, w1, w2, w3, i, even, last):
    """Weights of four pixels of luma -> of the samples of chroma from `i` on, or from 0 where that is -1.

    The first of the pixels is an `even` one or not. The border is repeated: the first and the `last` sample stand in
    for those beyond them.
    """
    v0 = tl.where(even, 0.25 * w0, 0.75 * w0 + 0.25 * w1)
    v1 = tl.where(even, 0.75 * (w0 + w1) + 0.25 * w2, 0.25 * (w0 + w3) + 0.75 * (w1 + w2))
    v2 = tl.where(even, 0.25 * w1 + 0.75 * (w2 + w3), 0.25 * w2 + 0.75 * w3)
    v3 = tl.where(even, 0.25 * w3, 0.0)
    outside = i < 0
    v0, v1, v2, v3 = (
        v0 + tl.where(outside, v1, 0.0),
        tl.where(outside, v2, v1),
        tl.where(outside, v3, v2),
        tl.where(outside, 0.0, v3),
    )
    beyond = tl.maximum(i, 0) - last
    v2 += tl.where(beyond > -3, v3, 0.0)
    v1 += tl.where(beyond > -2, v2, 0.0)
    v0 += tl.where(beyond > -1, v1, 0.0)
    return v0, tl.where(beyond > -1, 0.0, v1), tl.where(beyond > -2, 0.0, v2), tl.where(beyond > -3, 0.0, v3)


@triton.jit
def _words(plane):
    """An address in words, and the bytes from there to it."""
    address = plane.to(tl.int64)
    return (address & -4).to(tl.pointer_type(tl.uint32)), (address & 3).to(tl.int32)


@triton.jit
def _four(words, at, behind):
    """A word of the four bytes from `at` on, of which those in words from that of the byte `behind` on are 0."""
    word, last = at >> 2, (behind - 1) >> 2
    low = tl.load(words + word, mask=word <= last, other=0)
    high = tl.load(words + word + 1, mask=word < last, other=0)
    return shifted(low, high, ((at & 3) * 8).to(tl.uint64))


@triton.jit
def plane_kernel(
    images,
    offsets,
    widths,
    heights,
    boxes,
    crops,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    crop, first_y, first_x, left, top, width, height = tile_of(boxes, SIZE, ROWS, COLUMNS)
    y, x = first_y + tl.arange(0, ROWS), first_x + tl.arange(0, COLUMNS)
    pitch, lines = tl.load(widths + crop).to(tl.int32), tl.load(heights + crop).to(tl.int32)

    scale_x, scale_y = width.to(tl.float32) / SIZE, height.to(tl.float32) / SIZE
    stretch_x, stretch_y = tl.maximum(scale_x, 1.0), tl.maximum(scale_y, 1.0)
    shrink_x, shrink_y = 1.0 / stretch_x, 1.0 / stretch_y
    # What a tile has beyond the crop repeats its last pixel, and is not stored.
    center_x = (tl.minimum(x, SIZE - 1).to(tl.float32) + 0.5) * scale_x
    center_y = (tl.minimum(y, SIZE - 1).to(tl.float32) + 0.5) * scale_y
    from_x = first_tap(center_x, stretch_x, RADIUS, True)
    # Rounding may put `from_x` a pixel too far to the left, where the weight is next to nothing.
    groups = (tl.ceil(2.0 * RADIUS * stretch_x).to(tl.int32) + 4) // 4
    begin = first_tap((first_y + 0.5) * scale_y, stretch_y, RADIUS, True)
    bottom = (tl.minimum(first_y + ROWS, SIZE) - 0.5) * scale_y
    end = tl.minimum((bottom + RADIUS * stretch_y + 0.5).to(tl.int32), height)
    # Distances from the center, in pixels of the narrower side: of the first tap, and of what lies behind the box.
    from_left, behind = (from_x + 0.5 - center_x) * shrink_x, (width - center_x) * shrink_x
    total_x = tl.zeros((COLUMNS,), tl.float32)
    for tap in range(4 * groups):
        total_x += _weight(from_left + tap * shrink_x, behind, RADIUS)
    share_x = 1.0 / total_x
    center_y *= shrink_y

    half, last_x, last_y = (pitch + 1) // 2, (pitch + 1) // 2 - 1, (lines + 1) // 2 - 1
    from_half, even = (left + from_x - 1) >> 1, (left + from_x) & 1 == 0
    lights, light_skew = _words(images + tl.load(offsets + crop * 3) + top.to(tl.int64) * pitch + left)
    blues, blue_skew = _words(images + tl.load(offsets + crop * 3 + 1))
    reds, red_skew = _words(images + tl.load(offsets + crop * 3 + 2))
    total_y = tl.zeros((ROWS,), tl.float32)
    light, blue, red = (
        tl.zeros((ROWS, COLUMNS), tl.float32),
        tl.zeros((ROWS, COLUMNS), tl.float32),
        tl.zeros((ROWS, COLUMNS), tl.float32),
    )
    cb, cr = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    # The rows of luma 2i + 1 and 2i + 2 lie between the rows of chroma i and i + 1. The first step is for its chroma.
    for i in range(((top + begin - 1) >> 1) - 1, ((top + end) >> 1)):
        row = 2 * i + 1 - top
        chroma = tl.minimum(tl.maximum(i + 1, 0), last_y) * half
        # Of rows that the tile does not take no word is read: they may not be in memory. And they have no weight.
        own_0, own_1 = (row >= begin) & (row < end), (row + 1 >= begin) & (row + 1 < end)
        width_0, width_1 = tl.where(own_0, width, -4), tl.where(own_1, width, -4)
        light_0, light_1 = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
        next_cb, next_cr = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
        for group in range(groups):
            distance, at = from_left + 4 * group * shrink_x, light_skew + row * pitch
            w0 = _weight(distance, behind, RADIUS)
            w1 = _weight(distance + shrink_x, behind, RADIUS)
            w2 = _weight(distance + 2 * shrink_x, behind, RADIUS)
            w3 = _weight(distance + 3 * shrink_x, behind, RADIUS)
            four = _four(lights, at + from_x + 4 * group, at + width_0)
            light_0 += w0 * byte(four, 0) + w1 * byte(four, 1) + w2 * byte(four, 2) + w3 * byte(four, 3)
            at += pitch
            four = _four(lights, at + from_x + 4 * group, at + width_1)
            light_1 += w0 * byte(four, 0) + w1 * byte(four, 1) + w2 * byte(four, 2) + w3 * byte(four, 3)
            from_here = from_half + 2 * group
            v0, v1, v2, v3 = _of_chroma(w0, w1, w2, w3, from_here, even, last_x)
            from_here = tl.maximum(from_here, 0)
            four = _four(blues, blue_skew + chroma + from_here, blue_skew + chroma + half)
            next_cb += v0 * byte(four, 0) + v1 * byte(four, 1) + v2 * byte(four, 2) + v3 * byte(four, 3)
            four = _four(reds, red_skew + chroma + from_here, red_skew + chroma + half)
            next_cr += v0 * byte(four, 0) + v1 * byte(four, 1) + v2 * byte(four, 2) + v3 * byte(four, 3)
        light_0, light_1 = light_0 * share_x, light_1 * share_x
        next_cb, next_cr = next_cb * share_x, next_cr * share_x
        weight_0 = weight_at(tl.where(own_0, (row + 0.5) * shrink_y, 1e6) - center_y, RADIUS, True)
        weight_1 = weight_at(tl.where(own_1, (row + 1.5) * shrink_y, 1e6) - center_y, RADIUS, True)
        total_y += weight_0 + weight_1
        weight_0, weight_1 = weight_0[:, None], weight_1[:, None]
        light += weight_0 * light_0[None, :]
        blue += weight_0 * (0.75 * cb + 0.25 * next_cb)[None, :]
        red += weight_0 * (0.75 * cr + 0.25 * next_cr)[None, :]
        light += weight_1 * light_1[None, :]
        blue += weight_1 * (0.25 * cb + 0.75 * next_cb)[None, :]
        red += weight_1 * (0.25 * cr + 0.75 * next_cr)[None, :]
        cb, cr = next_cb, next_cr

    share_y = (1.0 / total_y)[:, None]
    light, blue, red = light * share_y, blue * share_y - 128.0, red * share_y - 128.0
    r = to_byte(light + _CR_RED * red)
    g = to_byte(light - _CB_GREEN * blue - _CR_GREEN * red)
    b = to_byte(light + _CB_BLUE * blue)
    store_tile(crops, crop, r, g, b, first_x, y, x, SIZE, WIDE, ROWS, COLUMNS)
