"""What crops of RGB and of planes have in common, in Triton: filters, words shifted into place, and the way out."""

from __future__ import annotations

import triton
import triton.language as tl

from ..augment.interleaved import four_columns, interleaved
from . import reference

_ROUND = tl.constexpr(reference.ROUND)


@triton.jit
def tile_of(boxes, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What a program makes: the number of its crop, the first row and column of its tile; and the crop's box."""
    ACROSS: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = ACROSS * ((SIZE + ROWS - 1) // ROWS)
    number = tl.program_id(0) % TILES
    # 64 bit: the images of a data set are more bytes than an int32 can count.
    crop = (tl.program_id(0) // TILES).to(tl.int64)
    left, top = tl.load(boxes + crop * 4).to(tl.int32), tl.load(boxes + crop * 4 + 1).to(tl.int32)
    width, height = tl.load(boxes + crop * 4 + 2).to(tl.int32), tl.load(boxes + crop * 4 + 3).to(tl.int32)
    return crop, number // ACROSS * ROWS, number % ACROSS * COLUMNS, left, top, width, height


@triton.jit
def weight_at(distance, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
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
def first_tap(center, stretch, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """The first pixel that has a weight. Without antialiasing it may lie outside, and the border is repeated there."""
    if ANTIALIAS:
        return tl.maximum((center - RADIUS * stretch + 0.5).to(tl.int32), 0)
    else:
        return tl.floor(center - 0.5).to(tl.int32) + (1 - RADIUS)


@triton.jit
def shifted(low, high, bits):
    """The word that begins so many bits, fewer than 32, after the beginning of `low`."""
    return (((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> bits).to(tl.uint32)


@triton.jit
def byte(word, number: tl.constexpr):
    return ((word >> (8 * number)) & 255).to(tl.float32)


@triton.jit
def to_byte(x):
    return tl.minimum(tl.maximum(tl.floor(x + _ROUND), 0.0), 255.0)


@triton.jit
def store_tile(
    crops,
    crop,
    r,
    g,
    b,
    first_x,
    y,
    x,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes bytes (ROWS, COLUMNS) of three channels, from `first_x` on; of rows `y` and columns `x` those inside."""
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
