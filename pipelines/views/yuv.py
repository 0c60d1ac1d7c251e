"""RGB <-> `Planes`, compiled. Weights are JFIF's; chroma is upsampled as libjpeg does it, by a triangle of 3 and 1.

On the way there, chroma that a JPEG has stored at half the resolution is found again: of samples a, b upsampled to
(3a + b) / 4 and (a + 3b) / 4, the weights -1, 3, 3, -1 give the first one back. Chroma of full resolution is averaged.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import float32, int32, uint8

from ..images.planes import Planes, planes_size
from ..numba_cache import compiled

_BYTES = numba.types.Array(uint8, 1, "C", readonly=True)
_PIXELS = numba.types.Array(uint8, 3, "C", readonly=True)
_HALF = float32(0.5)


def to_planes(pixels: np.ndarray, halved: tuple[bool, bool] = (False, False)) -> Planes:
    """Of (H, W, 3) uint8; `halved`: whether the width and the height of its chroma were halved before."""
    height, width = pixels.shape[:2]
    flat = np.empty(planes_size(height, width), np.uint8)
    _split(np.ascontiguousarray(pixels), *halved, flat)
    return Planes(flat, height, width)


def to_rgb(planes: Planes) -> np.ndarray:
    """(H, W, 3) uint8."""
    out = np.empty(planes.shape, np.uint8)
    _joined(np.ascontiguousarray(planes.flat), planes.height, planes.width, out)
    return out


@compiled(numba.void(_PIXELS, numba.boolean, numba.boolean, uint8[::1]), fastmath=True)
def _split(pixels, across, down, flat):
    height, width = pixels.shape[0], pixels.shape[1]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    source = pixels.reshape(3 * height * width)
    for i in range(height * width):
        r, g, b = int32(source[3 * i]), int32(source[3 * i + 1]), int32(source[3 * i + 2])
        light = int32(int32(19595) * r + int32(38470) * g + int32(7471) * b + int32(32768))  # else of 64 bits
        flat[i] = uint8(light >> int32(16))
    cb = flat[height * width : height * width + rows * columns]
    cr = flat[height * width + rows * columns :]
    near, far = (float32(0.75), float32(-0.25)) if down else (_HALF, float32(0))
    inner, outer = (float32(0.75), float32(-0.25)) if across else (_HALF, float32(0))
    line = np.empty(3 * (width + 4), np.float32)  # a row with two more columns on either side
    for j in range(rows):
        y1, y2 = 2 * j, min(2 * j + 1, height - 1)
        y0, y3 = max(y1 - 1, 0), min(y2 + 1, height - 1)
        p0, p1 = source[3 * width * y0 : 3 * width * (y0 + 1)], source[3 * width * y1 : 3 * width * (y1 + 1)]
        p2, p3 = source[3 * width * y2 : 3 * width * (y2 + 1)], source[3 * width * y3 : 3 * width * (y3 + 1)]
        body = line[6 : 6 + 3 * width]
        for i in range(3 * width):
            body[i] = near * (float32(p1[i]) + float32(p2[i])) + far * (float32(p0[i]) + float32(p3[i]))
        for c in range(3):
            line[3 + c] = body[c]
            line[6 + 3 * width + c] = line[9 + 3 * width + c] = body[3 * (width - 1) + c]
        for x in range(columns):
            at = 3 + 6 * x  # of the column before
            r = inner * (line[at + 3] + line[at + 6]) + outer * (line[at] + line[at + 9])
            g = inner * (line[at + 4] + line[at + 7]) + outer * (line[at + 1] + line[at + 10])
            b = inner * (line[at + 5] + line[at + 8]) + outer * (line[at + 2] + line[at + 11])
            blue = float32(-0.168735892) * r - float32(0.331264108) * g + _HALF * b + float32(128.5)
            red = _HALF * r - float32(0.418687589) * g - float32(0.081312411) * b + float32(128.5)
            cb[j * columns + x] = int32(min(max(blue, float32(0)), float32(255)))
            cr[j * columns + x] = int32(min(max(red, float32(0)), float32(255)))


@compiled(numba.void(_BYTES, numba.int64, numba.int64, uint8[:, :, ::1]), fastmath=True)
def _joined(flat, height, width, out):
    rows, columns = (height + 1) // 2, (width + 1) // 2
    start = height * width
    near, far = float32(0.75), float32(0.25)
    both = np.empty((2, columns), np.float32)
    for y in range(height):
        j = y // 2
        other = min(max(j - 1 + 2 * (y % 2), 0), rows - 1)
        for p in range(2):
            a, b = start + (p * rows + j) * columns, start + (p * rows + other) * columns
            for x in range(columns):
                both[p, x] = near * float32(flat[a + x]) + far * float32(flat[b + x]) - float32(128)
        for x in range(width):
            i = x // 2
            k = min(max(i - 1 + 2 * (x % 2), 0), columns - 1)
            cb, cr = near * both[0, i] + far * both[0, k], near * both[1, i] + far * both[1, k]
            luma = float32(flat[y * width + x]) + _HALF
            r = luma + float32(1.402) * cr
            g = luma - float32(0.344136286) * cb - float32(0.714136286) * cr
            b = luma + float32(1.772) * cb
            out[y, x, 0] = int32(min(max(r, float32(0)), float32(255)))
            out[y, x, 1] = int32(min(max(g, float32(0)), float32(255)))
            out[y, x, 2] = int32(min(max(b, float32(0)), float32(255)))
