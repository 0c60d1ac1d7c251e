"""Views on CPU cores: antialiased crops, bit for bit Pillow's, and the colour half, within 0.05 grey levels of exact.

Compiled by numba from the loops below. Each pixel is touched a few times: a resize in two passes of integers; then
tiles of four rows, small enough for the first-level cache, go through all of a view's operations as three planes of
float32, up to contrast, which needs the mean of the whole view, and on from there. A blur comes after that, four rows
at a time, and only on one plane where the view is gray. What has to wait waits in the view's place in the batch: with
planes beside it, the two are more than the second-level cache holds, and a blurred view takes 30 us more. Nothing here
holds the interpreter lock.

Compiling takes 10 to 20 s of a core, once an installation: `numba_cache` says where the result is kept. Numba looks
whether the file of a compiled function has changed, not those of the functions it calls: so this is one long file.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba import float32, int32, uint8, uint16

from ...kernels.augment.reference import LUMA, SOLARIZE, blur_taps
from ..images.planes import Planes
from ..numba_cache import compiled
from ..spec import ViewSpec

_BITS = 22  # of a resize's weights behind the point, as in Pillow: 8 bits of pixels and 2 of sums remain
_GRAY_LUMA, _GRAY_MEAN = 4, 5  # operations after the four of the jitter
_LEAST = 2e-5  # weights of a blur below this are left out: together they move a pixel by less than 0.02 grey levels
_RADIUS = {"bilinear": 1, "bicubic": 2}

# Loops of four equal statements become vector instructions: the resize is then 3 times as fast. Numba's default is off.
_slp, numba.config.SLP_VECTORIZE = numba.config.SLP_VECTORIZE, 1
_exactly = compiled()
_fast = compiled(fastmath=True)
_index = numba.uintp  # of what cannot be negative: numba then leaves out Python's wrap-around
_ZERO, _ONE = float32(0), float32(1)
_RED, _GREEN, _BLUE = map(float32, LUMA)


# ---- crop and resize


@_exactly
def _weight(distance, radius):
    """Triangle for a radius of 1, Keys' cubic with a = -0.5 for 2."""
    d = abs(distance)
    if radius == 1:
        return max(1.0 - d, 0.0)
    if d < 1:
        return (1.5 * d - 2.5) * d * d + 1
    return (((d - 5) * d + 8) * d - 4) * -0.5 if d < 2 else 0.0


@_exactly
def _weights(length, size, radius):
    """(first, count, weights): the taps of each of `size` outputs along a side of `length`; zeros behind them."""
    scale = length / size
    stretch = max(scale, 1.0)
    most = 2 * int(math.ceil(radius * stretch)) + 1
    first, count = np.empty(size, np.int32), np.empty(size, np.int32)
    weights, exact = np.zeros((size, most + 3), np.int32), np.empty(most)
    for out in range(size):
        center = (out + 0.5) * scale
        low = max(int(center - radius * stretch + 0.5), 0)
        taps = min(int(center + radius * stretch + 0.5), length) - low
        total = 0.0
        for k in range(taps):
            exact[k] = _weight((k + low - center + 0.5) * (1.0 / stretch), radius)
            total += exact[k]
        for k in range(taps):
            fixed = exact[k] / total * (1 << _BITS)
            weights[out, k] = int(fixed - 0.5) if fixed < 0 else int(fixed + 0.5)
        first[out], count[out] = low, taps
    return first, count, weights


@_exactly
def _byte(total):
    return uint8(min(max(total >> int32(_BITS), int32(0)), int32(255)))


@_exactly
def _row(y, last, where):
    source, start, stride, length = where
    at = start + min(y, last) * stride
    return source[at : at + length]


@_exactly
def _across(source, start, stride, rows, size, flip, taps, turned, out):
    """Rows of RGB bytes, `stride` apart from `start` on -> out (rows, 3 * size), eight rows and four taps at a time.

    The eight bytes of a column lie together in `turned`, and are one vector. Sums have names and are stored at the end:
    only then does LLVM see that they do not alias what is read.
    """
    first, count, weights = taps
    half = int32(1 << (_BITS - 1))
    columns = 3 * (first[size - 1] + count[size - 1])
    made = np.empty(24 * size, np.int32)
    for y in range(0, rows, 8):
        last, where = rows - 1, (source, start, stride, columns)
        r0, r1, r2, r3 = (
            _row(y, last, where),
            _row(y + 1, last, where),
            _row(y + 2, last, where),
            _row(y + 3, last, where),
        )
        y4, y5, y6, y7 = y + 4, y + 5, y + 6, y + 7
        r4, r5, r6, r7 = _row(y4, last, where), _row(y5, last, where), _row(y6, last, where), _row(y7, last, where)
        for x in range(columns):
            i = 8 * x
            turned[i], turned[i + 1], turned[i + 2], turned[i + 3] = r0[x], r1[x], r2[x], r3[x]
            turned[i + 4], turned[i + 5], turned[i + 6], turned[i + 7] = r4[x], r5[x], r6[x], r7[x]
        for x in range(size):
            tap = size - 1 - x if flip else x
            for c in range(3):
                i = _index(8 * (3 * first[tap] + c))
                j = _index(8 * (3 * x + c))
                s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = half
                for k in range(0, count[tap], 4):
                    w0, w1, w2, w3 = weights[tap, k], weights[tap, k + 1], weights[tap, k + 2], weights[tap, k + 3]
                    s0 = int32(s0 + int32(turned[i + _index(0)]) * w0 + int32(turned[i + _index(24)]) * w1)
                    s1 = int32(s1 + int32(turned[i + _index(1)]) * w0 + int32(turned[i + _index(25)]) * w1)
                    s2 = int32(s2 + int32(turned[i + _index(2)]) * w0 + int32(turned[i + _index(26)]) * w1)
                    s3 = int32(s3 + int32(turned[i + _index(3)]) * w0 + int32(turned[i + _index(27)]) * w1)
                    s4 = int32(s4 + int32(turned[i + _index(4)]) * w0 + int32(turned[i + _index(28)]) * w1)
                    s5 = int32(s5 + int32(turned[i + _index(5)]) * w0 + int32(turned[i + _index(29)]) * w1)
                    s6 = int32(s6 + int32(turned[i + _index(6)]) * w0 + int32(turned[i + _index(30)]) * w1)
                    s7 = int32(s7 + int32(turned[i + _index(7)]) * w0 + int32(turned[i + _index(31)]) * w1)
                    s0 = int32(s0 + int32(turned[i + _index(48)]) * w2 + int32(turned[i + _index(72)]) * w3)
                    s1 = int32(s1 + int32(turned[i + _index(49)]) * w2 + int32(turned[i + _index(73)]) * w3)
                    s2 = int32(s2 + int32(turned[i + _index(50)]) * w2 + int32(turned[i + _index(74)]) * w3)
                    s3 = int32(s3 + int32(turned[i + _index(51)]) * w2 + int32(turned[i + _index(75)]) * w3)
                    s4 = int32(s4 + int32(turned[i + _index(52)]) * w2 + int32(turned[i + _index(76)]) * w3)
                    s5 = int32(s5 + int32(turned[i + _index(53)]) * w2 + int32(turned[i + _index(77)]) * w3)
                    s6 = int32(s6 + int32(turned[i + _index(54)]) * w2 + int32(turned[i + _index(78)]) * w3)
                    s7 = int32(s7 + int32(turned[i + _index(55)]) * w2 + int32(turned[i + _index(79)]) * w3)
                    i += _index(96)
                made[j + _index(0)] = s0
                made[j + _index(1)] = s1
                made[j + _index(2)] = s2
                made[j + _index(3)] = s3
                made[j + _index(4)] = s4
                made[j + _index(5)] = s5
                made[j + _index(6)] = s6
                made[j + _index(7)] = s7
        if y + 8 <= rows:
            o0, o1, o2, o3 = out[y], out[y + 1], out[y + 2], out[y + 3]
            o4, o5, o6, o7 = out[y + 4], out[y + 5], out[y + 6], out[y + 7]
            for x in range(3 * size):
                i = 8 * x
                o0[x], o1[x], o2[x] = _byte(made[i]), _byte(made[i + 1]), _byte(made[i + 2])
                o3[x], o4[x], o5[x] = _byte(made[i + 3]), _byte(made[i + 4]), _byte(made[i + 5])
                o6[x], o7[x] = _byte(made[i + 6]), _byte(made[i + 7])
        else:
            for r in range(rows - y):
                for x in range(3 * size):
                    out[y + r, x] = _byte(made[8 * x + r])


@_exactly
def _down(source, start, stride, rows, size, taps, out):
    """`rows` rows of bytes, `stride` apart from `start` on -> out (size * columns): four taps at a time."""
    first, count, weights = taps
    columns = out.size // size
    total = np.empty(columns, np.int32)
    for y in range(size):
        for x in range(columns):
            total[x] = int32(1 << (_BITS - 1))
        line = out[y * columns : (y + 1) * columns]
        for k in range(0, count[y], 4):
            w0, w1, w2, w3 = weights[y, k], weights[y, k + 1], weights[y, k + 2], weights[y, k + 3]
            row, last = first[y] + k, rows - 1  # beyond the last one weights are 0
            at0, at1 = start + row * stride, start + min(row + 1, last) * stride
            at2, at3 = start + min(row + 2, last) * stride, start + min(row + 3, last) * stride
            r0, r1 = source[at0 : at0 + columns], source[at1 : at1 + columns]
            r2, r3 = source[at2 : at2 + columns], source[at3 : at3 + columns]
            if k + 4 < count[y]:
                for x in range(columns):
                    total[x] += int32(r0[x]) * w0 + int32(r1[x]) * w1 + int32(r2[x]) * w2 + int32(r3[x]) * w3
            else:
                for x in range(columns):
                    rest = int32(r0[x]) * w0 + int32(r1[x]) * w1 + int32(r2[x]) * w2 + int32(r3[x]) * w3
                    line[x] = _byte(int32(total[x] + rest))


@_exactly
def _crop(pixels, box, size, radius, flip, scratch, out):
    """A box (left, top, width, height) of pixels (H, W, 3) -> out (size * size * 3), in Pillow's order and rounding.

    That is down the columns first where it takes away more than twice as many rows as the other pass takes columns.
    """
    left, top, width, height = box[0], box[1], box[2], box[3]
    stride = 3 * pixels.shape[1]
    source = pixels.reshape(pixels.size)
    start = top * stride + 3 * left
    across, down = _weights(width, size, radius), _weights(height, size, radius)
    turned = scratch[: 8 * 3 * (width + size + 8)]
    rest = scratch[turned.size :]
    if height - size > 2 * max(width - size, 0):
        columns = rest[: 3 * width * size]
        _down(source, start, stride, height, size, down, columns)
        _across(columns, 0, 3 * width, size, size, flip, across, turned, out.reshape(size, 3 * size))
        return
    rows = rest[: 3 * size * height]
    _across(source, start, stride, height, size, flip, across, turned, rows.reshape(height, 3 * size))
    _down(rows, 0, 3 * size, height, size, down, out)


# ---- crop and resize of planes: half the bytes, and every pass on whole vectors


@_fast
def _plane_weights(length, size, radius, start, whole):
    """The taps of `_weights` in floating point, on luma from `start` on along a side of `whole`, and on its chroma.

    Those on chroma are those on luma, taken through libjpeg's upsampling by 3 and 1: what they give is the resize of
    the upsampled plane. (first, count, weights) of both; zeros behind the weights.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    most = 2 * int(math.ceil(radius * stretch)) + 1
    first, count = np.empty(size, np.int32), np.empty(size, np.int32)
    weights, halves = np.zeros((size, most + 3), np.float32), np.zeros((size, most + 6), np.float32)
    first_half, half_count = np.empty(size, np.int32), np.empty(size, np.int32)
    last = (whole + 1) // 2 - 1
    for out in range(size):
        center = (out + 0.5) * scale
        low = max(int(center - radius * stretch + 0.5), 0)
        taps = min(int(center + radius * stretch + 0.5), length) - low
        total = 0.0
        for k in range(taps):
            weight = _weight((k + low - center + 0.5) * (1.0 / stretch), radius)
            weights[out, k] = weight
            total += weight
        low += start
        begin = max((low - 1) // 2, 0)
        for k in range(taps):
            weights[out, k] = weight = float32(weights[out, k] / total)
            near = (low + k) // 2
            far = min(max(near - 1 + 2 * ((low + k) % 2), 0), last)
            halves[out, near - begin] += float32(0.75) * weight
            halves[out, far - begin] += float32(0.25) * weight
        first[out], count[out] = low, taps
        first_half[out], half_count[out] = begin, min((low + taps) // 2, last) - begin + 1
    return (first, count, weights), (first_half, half_count, halves)


@_fast
def _plane_down(plane, stride, left, columns, last, y, taps, out):
    """Weighted rows of a plane, `columns` from column `left` on -> one row: four taps at a time.

    `out` is a multiple of 64 values long, and all of them are written where the plane goes on far enough: what is left
    of a row after whole vectors took as long as these.
    """
    first, count, weights = taps
    end = min(first[y] + (count[y] + 3) // 4 * 4 - 1, last) * stride + left + out.size
    columns = out.size if end <= plane.size else columns
    for k in range(0, count[y], 4):
        w0, w1, w2, w3 = weights[y, k], weights[y, k + 1], weights[y, k + 2], weights[y, k + 3]
        row = first[y] + k  # beyond the last one weights are 0
        at0, at1 = row * stride + left, min(row + 1, last) * stride + left
        at2, at3 = min(row + 2, last) * stride + left, min(row + 3, last) * stride + left
        r0, r1 = plane[at0 : at0 + columns], plane[at1 : at1 + columns]
        r2, r3 = plane[at2 : at2 + columns], plane[at3 : at3 + columns]
        if k == 0:
            for x in range(columns):
                out[x] = float32(r0[x]) * w0 + float32(r1[x]) * w1 + float32(r2[x]) * w2 + float32(r3[x]) * w3
        else:
            for x in range(columns):
                out[x] += float32(r0[x]) * w0 + float32(r1[x]) * w1 + float32(r2[x]) * w2 + float32(r3[x]) * w3


@_fast
def _turn(rows, columns, out):
    """Eight rows -> out (columns * 8): a column of them is one vector."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for x in range(columns):
        i = 8 * x
        out[i], out[i + 1], out[i + 2], out[i + 3] = r0[x], r1[x], r2[x], r3[x]
        out[i + 4], out[i + 5], out[i + 6], out[i + 7] = r4[x], r5[x], r6[x], r7[x]


@_fast
def _plane_across(one, two, left, size, flip, taps, out_one, out_two):
    """Two of what `_turn` gave, with `left` as first column -> two times (size * 8): four taps of eight rows at a time.

    What a column's weights are, and where it begins, is looked up once for both. Sums have names, and are stored at the
    end: only then does LLVM see that they do not alias what is read.
    """
    first, count, weights = taps
    for x in range(size):
        tap = size - 1 - x if flip else x
        i, j = _index(8 * (first[tap] - left)), _index(8 * x)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _ZERO
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = _ZERO
        for k in range(0, count[tap], 4):
            w0, w1, w2, w3 = weights[tap, k], weights[tap, k + 1], weights[tap, k + 2], weights[tap, k + 3]
            s0 += one[i + _index(0)] * w0 + one[i + _index(8)] * w1
            s1 += one[i + _index(1)] * w0 + one[i + _index(9)] * w1
            s2 += one[i + _index(2)] * w0 + one[i + _index(10)] * w1
            s3 += one[i + _index(3)] * w0 + one[i + _index(11)] * w1
            s4 += one[i + _index(4)] * w0 + one[i + _index(12)] * w1
            s5 += one[i + _index(5)] * w0 + one[i + _index(13)] * w1
            s6 += one[i + _index(6)] * w0 + one[i + _index(14)] * w1
            s7 += one[i + _index(7)] * w0 + one[i + _index(15)] * w1
            t0 += two[i + _index(0)] * w0 + two[i + _index(8)] * w1
            t1 += two[i + _index(1)] * w0 + two[i + _index(9)] * w1
            t2 += two[i + _index(2)] * w0 + two[i + _index(10)] * w1
            t3 += two[i + _index(3)] * w0 + two[i + _index(11)] * w1
            t4 += two[i + _index(4)] * w0 + two[i + _index(12)] * w1
            t5 += two[i + _index(5)] * w0 + two[i + _index(13)] * w1
            t6 += two[i + _index(6)] * w0 + two[i + _index(14)] * w1
            t7 += two[i + _index(7)] * w0 + two[i + _index(15)] * w1
            s0 += one[i + _index(16)] * w2 + one[i + _index(24)] * w3
            s1 += one[i + _index(17)] * w2 + one[i + _index(25)] * w3
            s2 += one[i + _index(18)] * w2 + one[i + _index(26)] * w3
            s3 += one[i + _index(19)] * w2 + one[i + _index(27)] * w3
            s4 += one[i + _index(20)] * w2 + one[i + _index(28)] * w3
            s5 += one[i + _index(21)] * w2 + one[i + _index(29)] * w3
            s6 += one[i + _index(22)] * w2 + one[i + _index(30)] * w3
            s7 += one[i + _index(23)] * w2 + one[i + _index(31)] * w3
            t0 += two[i + _index(16)] * w2 + two[i + _index(24)] * w3
            t1 += two[i + _index(17)] * w2 + two[i + _index(25)] * w3
            t2 += two[i + _index(18)] * w2 + two[i + _index(26)] * w3
            t3 += two[i + _index(19)] * w2 + two[i + _index(27)] * w3
            t4 += two[i + _index(20)] * w2 + two[i + _index(28)] * w3
            t5 += two[i + _index(21)] * w2 + two[i + _index(29)] * w3
            t6 += two[i + _index(22)] * w2 + two[i + _index(30)] * w3
            t7 += two[i + _index(23)] * w2 + two[i + _index(31)] * w3
            i += _index(32)
        out_one[j + _index(0)] = s0
        out_one[j + _index(1)] = s1
        out_one[j + _index(2)] = s2
        out_one[j + _index(3)] = s3
        out_one[j + _index(4)] = s4
        out_one[j + _index(5)] = s5
        out_one[j + _index(6)] = s6
        out_one[j + _index(7)] = s7
        out_two[j + _index(0)] = t0
        out_two[j + _index(1)] = t1
        out_two[j + _index(2)] = t2
        out_two[j + _index(3)] = t3
        out_two[j + _index(4)] = t4
        out_two[j + _index(5)] = t5
        out_two[j + _index(6)] = t6
        out_two[j + _index(7)] = t7


@_fast
def _to_rgb(y, u, v, size, some, made, out):
    """Luma and chroma (size * 8) of eight rows, as `_plane_across` leaves them -> `some` rows of RGB, rounded.

    Rows come apart as bytes: as floats, the same takes 62 us of a 224 px view instead of 23.
    """
    count, most = 8 * size, float32(255)
    red, green, blue = made[:count], made[count : 2 * count], made[2 * count : 3 * count]
    for i in range(count):
        light, cb, cr = y[i] + float32(0.5), u[i] - float32(128), v[i] - float32(128)
        red[i] = uint8(int32(min(max(light + float32(1.402) * cr, _ZERO), most)))
        green[i] = uint8(int32(min(max(light - float32(0.344136286) * cb - float32(0.714136286) * cr, _ZERO), most)))
        blue[i] = uint8(int32(min(max(light + float32(1.772) * cb, _ZERO), most)))
    for r in range(some):
        line = out[3 * size * r : 3 * size * (r + 1)]
        r_, g_, b_ = red[r:], green[r:], blue[r:]
        for x in range(size):
            line[3 * x], line[3 * x + 1], line[3 * x + 2] = r_[8 * x], g_[8 * x], b_[8 * x]


@_fast
def _eight_rows(plane, stride, left, columns, last, y, some, taps, made, turned):
    """`some` rows from `y` on of what `_plane_down` makes, turned, and zeros behind them for taps of no weight."""
    for r in range(some):
        _plane_down(plane, stride, left, columns, last, y + r, taps, made[r])
    _turn(made, columns, turned)
    turned[8 * columns : 8 * (columns + 4)] = _ZERO


@_fast
def _wide(columns):
    """Of a row in `_plane_down`."""
    return (columns + 63) // 64 * 64


@_fast
def _plane_crop(flat, height, width, box, size, radius, flip, scratch, out):
    """A box (left, top, width, height) of `Planes` -> out (size * size * 3), rounded once, sixteen rows at a time."""
    left, top, columns, rows = box[0], box[1], box[2], box[3]
    across, half_across = _plane_weights(columns, size, radius, left, width)
    down, half_down = _plane_weights(rows, size, radius, top, height)
    stride, lines = (width + 1) // 2, (height + 1) // 2
    begin = max((left - 1) // 2, 0)
    halves = min((left + columns) // 2, stride - 1) - begin + 1
    wide, wide_half, most = _wide(columns), _wide(halves), columns + 8  # what taps read behind the last column
    made = scratch[: 8 * wide].reshape(8, wide)
    made_half = scratch[: 8 * wide_half].reshape(8, wide_half)
    one, two = scratch[8 * wide : 8 * (wide + most)], scratch[8 * (wide + most) : 8 * (wide + 2 * most)]
    sums = scratch[8 * (wide + 2 * most) : 8 * (wide + 2 * most) + 32 * size].reshape(4, 8 * size)
    levels = np.empty(24 * size, np.uint8)
    area = height * width
    blue, red = flat[area:], flat[area + lines * stride :]
    for y in range(0, size, 16):
        _eight_rows(flat, width, left, columns, height - 1, y, min(8, size - y), down, made, one)
        if y + 8 < size:
            _eight_rows(flat, width, left, columns, height - 1, y + 8, min(8, size - y - 8), down, made, two)
        _plane_across(one, two, left, size, flip, across, sums[0], sums[3])
        for top_row in range(y, min(y + 16, size), 8):
            some = min(8, size - top_row)
            _eight_rows(blue, stride, begin, halves, lines - 1, top_row, some, half_down, made_half, one)
            _eight_rows(red, stride, begin, halves, lines - 1, top_row, some, half_down, made_half, two)
            _plane_across(one, two, begin, size, flip, half_across, sums[1], sums[2])
            luma = sums[0] if top_row == y else sums[3]
            _to_rgb(luma, sums[1], sums[2], size, some, levels, out[3 * size * top_row : 3 * size * (top_row + some)])


@_fast
def _turn_back(turned, columns, rows):
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for x in range(columns):
        i = 8 * x
        r0[x], r1[x], r2[x], r3[x] = turned[i], turned[i + 1], turned[i + 2], turned[i + 3]
        r4[x], r5[x], r6[x], r7[x] = turned[i + 4], turned[i + 5], turned[i + 6], turned[i + 7]


@_fast
def _deep_crop(planes, box, size, radius, scratch, out):
    """A box (left, top, width, height) of planes (C, H, W) uint16 -> out (size, size, C), rounded once.

    Channel by channel what `_plane_crop` does with luma.
    """
    channels, height, width = planes.shape
    left, top, columns, rows = box[0], box[1], box[2], box[3]
    across, _ = _plane_weights(columns, size, radius, left, width)
    down, _ = _plane_weights(rows, size, radius, top, height)
    wide, most = _wide(columns), columns + 8
    made = scratch[: 8 * wide].reshape(8, wide)
    one, two = scratch[8 * wide : 8 * (wide + most)], scratch[8 * (wide + most) : 8 * (wide + 2 * most)]
    sums = scratch[8 * (wide + 2 * most) : 8 * (wide + 2 * most) + 16 * size].reshape(2, 8 * size)
    lined = scratch[8 * (wide + 2 * most) + 16 * size : 8 * (wide + 2 * most) + 24 * size].reshape(8, size)
    for channel in range(channels):
        plane = planes[channel].reshape(height * width)
        for y in range(0, size, 16):
            _eight_rows(plane, width, left, columns, height - 1, y, min(8, size - y), down, made, one)
            if y + 8 < size:
                _eight_rows(plane, width, left, columns, height - 1, y + 8, min(8, size - y - 8), down, made, two)
            _plane_across(one, two, left, size, False, across, sums[0], sums[1])
            for top_row in range(y, min(y + 16, size), 8):
                _turn_back(sums[(top_row - y) // 8], size, lined)
                for r in range(min(8, size - top_row)):
                    for x in range(size):
                        level = min(max(lined[r, x] + float32(0.5), _ZERO), float32(65535))
                        out[top_row + r, x, channel] = uint16(int32(level))


# ---- colour: planes red, green, blue of values in [0, 1]


@_fast
def _unit(x):
    return min(max(x, _ZERO), _ONE)


@_fast
def _load(source, r, g, b):
    scale = float32(1 / 255)
    for i in range(r.size):
        r[i] = float32(source[3 * i]) * scale
        g[i] = float32(source[3 * i + 1]) * scale
        b[i] = float32(source[3 * i + 2]) * scale


@_fast
def _luma_sum(r, g, b):
    total = _ZERO
    for i in range(r.size):
        total += _RED * r[i] + _GREEN * g[i] + _BLUE * b[i]
    return total


@_fast
def _operate(operation, factor, mean, r, g, b):
    """One operation on a tile; `mean` is the mean luma of the view, for contrast."""
    if operation == 0:
        for i in range(r.size):
            r[i], g[i], b[i] = _unit(r[i] * factor), _unit(g[i] * factor), _unit(b[i] * factor)
    elif operation == 1:
        part = (_ONE - factor) * mean
        for i in range(r.size):
            r[i], g[i], b[i] = _unit(r[i] * factor + part), _unit(g[i] * factor + part), _unit(b[i] * factor + part)
    elif operation == 2:
        rest = _ONE - factor
        for i in range(r.size):
            part = rest * (_RED * r[i] + _GREEN * g[i] + _BLUE * b[i])
            r[i], g[i], b[i] = _unit(r[i] * factor + part), _unit(g[i] * factor + part), _unit(b[i] * factor + part)
    elif operation == 3:
        turn = float32(6) * factor
        for i in range(r.size):
            x, y, z = r[i], g[i], b[i]
            value = max(x, max(y, z))
            chroma = value - min(x, min(y, z))
            inverse = _ONE / max(chroma, float32(1e-12))
            by_green = float32(2) + (z - x) * inverse if value == y else float32(4) + (x - y) * inverse
            hue = ((y - z) * inverse if value == x else by_green) + turn
            hue -= float32(6) * np.floor(hue * float32(1 / 6))  # in [0, 6): red 0, green 2, blue 4
            r[i] = value - chroma * _unit(float32(2) - abs(hue - float32(3)))
            g[i] = value - chroma * _unit(abs(hue - float32(2)) - _ONE)
            b[i] = value - chroma * _unit(abs(hue - float32(4)) - _ONE)
    elif operation == _GRAY_LUMA:
        for i in range(r.size):
            r[i] = g[i] = b[i] = _RED * r[i] + _GREEN * g[i] + _BLUE * b[i]
    else:
        for i in range(r.size):
            r[i] = g[i] = b[i] = (r[i] + g[i] + b[i]) * float32(1 / 3)


@_fast
def _mirrored(place, size):
    """Reflected into [0, size); for the taps of weight 0 that lie further out, some place in there."""
    return min(abs(place if place < size else 2 * size - 2 - place), size - 1)


@_fast
def _four_down(source, rows, w, wide, size, out):
    """Four rows of `size`, `wide` apart in `out`, of sums down columns. `rows`: where in `source` each row begins, from
    the first that has a weight on. len(w) is 4, or 7 and more.

    A value that is read serves all four: that takes half the time of a row by itself.
    """
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    o1, o2, o3 = _index(wide), _index(2 * wide), _index(3 * wide)
    skip = max(w.size - 7, 0)
    n0, n1, n2, n3 = _index(rows[skip]), _index(rows[skip + 1]), _index(rows[skip + 2]), _index(rows[skip + 3])
    n4, n5, n6 = _index(rows[skip + 4]), _index(rows[skip + 5]), _index(rows[skip + 6])
    n7, n8, n9 = _index(rows[skip + 7]), _index(rows[skip + 8]), _index(rows[skip + 9])
    if w.size == 4:
        for x in range(_index(size)):
            a, b, c, d, e = source[x + n0], source[x + n1], source[x + n2], source[x + n3], source[x + n4]
            f, g, h, i, j = source[x + n5], source[x + n6], source[x + n7], source[x + n8], source[x + n9]
            out[x] = w0 * d + w1 * (c + e) + w2 * (b + f) + w3 * (a + g)
            out[x + o1] = w0 * e + w1 * (d + f) + w2 * (c + g) + w3 * (b + h)
            out[x + o2] = w0 * f + w1 * (e + g) + w2 * (d + h) + w3 * (c + i)
            out[x + o3] = w0 * g + w1 * (f + h) + w2 * (e + i) + w3 * (d + j)
        return
    w4, w5, w6 = w[4], w[5], w[6]
    n10, n11, n12 = _index(rows[skip + 10]), _index(rows[skip + 11]), _index(rows[skip + 12])
    n13, n14, n15 = _index(rows[skip + 13]), _index(rows[skip + 14]), _index(rows[skip + 15])
    for x in range(_index(size)):
        a, b, c, d, e = source[x + n0], source[x + n1], source[x + n2], source[x + n3], source[x + n4]
        f, g, h, i, j = source[x + n5], source[x + n6], source[x + n7], source[x + n8], source[x + n9]
        k, m, p, q = source[x + n10], source[x + n11], source[x + n12], source[x + n13]
        r, s = source[x + n14], source[x + n15]
        near0, far0 = w0 * g + w1 * (f + h) + w2 * (e + i), w4 * (c + k) + w5 * (b + m) + w6 * (a + p)
        near1, far1 = w0 * h + w1 * (g + i) + w2 * (f + j), w4 * (d + m) + w5 * (c + p) + w6 * (b + q)
        near2, far2 = w0 * i + w1 * (h + j) + w2 * (g + k), w4 * (e + p) + w5 * (d + q) + w6 * (c + r)
        near3, far3 = w0 * j + w1 * (i + k) + w2 * (h + m), w4 * (f + q) + w5 * (e + r) + w6 * (d + s)
        out[x] = near0 + w3 * (d + j) + far0
        out[x + o1] = near1 + w3 * (e + k) + far1
        out[x + o2] = near2 + w3 * (f + m) + far2
        out[x + o3] = near3 + w3 * (g + p) + far3
    for t in range(7, w.size):
        for row in range(4):
            line, middle = out[row * wide : row * wide + size], w.size - 1 + row
            above, below = source[rows[middle - t] :], source[rows[middle + t] :]
            for x in range(size):
                line[x] += w[t] * (above[x] + below[x])


@_fast
def _along(source, w, out):
    """out[i] = source[len(w) - 1 + i] and its neighbours, `len(w) - 1` to either side. len(w) is 4, or 7 and more."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    count = _index(out.size)
    if w.size == 4:
        for i in range(count):
            near = w0 * source[i + _index(3)] + w1 * (source[i + _index(2)] + source[i + _index(4)])
            out[i] = (
                near + w2 * (source[i + _index(1)] + source[i + _index(5)]) + w3 * (source[i] + source[i + _index(6)])
            )
        return
    w4, w5, w6 = w[4], w[5], w[6]
    middle = source[w.size - 7 :]
    for i in range(count):
        near = (
            w0 * middle[i + _index(6)]
            + w1 * (middle[i + _index(5)] + middle[i + _index(7)])
            + w2 * (middle[i + _index(4)] + middle[i + _index(8)])
        )
        mid = w3 * (middle[i + _index(3)] + middle[i + _index(9)]) + w4 * (
            middle[i + _index(2)] + middle[i + _index(10)]
        )
        out[i] = (
            near
            + mid
            + w5 * (middle[i + _index(1)] + middle[i + _index(11)])
            + w6 * (middle[i] + middle[i + _index(12)])
        )
    for t in range(7, w.size):
        left, right, weight = source[w.size - 1 - t :], source[w.size - 1 + t :], w[t]
        for i in range(count):
            out[i] += weight * (left[i] + right[i])


@_fast
def _gauss(sigma, reach):
    """Weights of a blur: the middle one and those to one side, cut to `_LEAST`."""
    w = np.zeros(max(reach, 6) + 1, np.float32)
    total = _ZERO
    for k in range(reach + 1):
        w[k] = np.exp(float32(-0.5) * (float32(k) / sigma) ** 2)
        total += w[k] if k == 0 else 2 * w[k]
    near = 0
    for k in range(reach + 1):
        w[k] /= total
        if w[k] > float32(_LEAST):
            near = k
        else:
            w[k] = _ZERO
    return w[: 4 if near <= 3 else max(near, 6) + 1]


@_fast
def _store(r, g, b, solarize, norm, out):
    """Solarise, normalise, and write pixel by pixel."""
    s0, s1, s2, o0, o1, o2 = norm[0], norm[1], norm[2], norm[3], norm[4], norm[5]
    if not solarize:
        for i in range(r.size):
            out[3 * i], out[3 * i + 1], out[3 * i + 2] = r[i] * s0 + o0, g[i] * s1 + o1, b[i] * s2 + o2
        return
    edge = float32(SOLARIZE)
    for i in range(r.size):
        x, y, z = r[i], g[i], b[i]
        out[3 * i] = (_ONE - x if x >= edge else x) * s0 + o0
        out[3 * i + 1] = (_ONE - y if y >= edge else y) * s1 + o1
        out[3 * i + 2] = (_ONE - z if z >= edge else z) * s2 + o2


@_fast
def _blurred(image, count, size, w, solarize, norm, scratch):
    """The first `count` (1 or 3) planes of an image as `_finish` has them in `image`, where the view takes their place.

    With a mirrored border; four rows at a time down the columns and along. They are stored as soon as no blur reads any
    more what is there.
    """
    reach = w.size - 1
    wide, late = size + 2 * reach, (reach + 3) // 4
    rows = np.empty((count, size + 2 * reach + 3), np.int64)
    for y in range(rows.shape[1]):
        row = _mirrored(y - reach, size)
        first = row // 4 * 4
        for p in range(count):
            rows[p, y] = size * (3 * first + p * min(4, size - first) + row - first)
    four, ring = scratch[: 4 * wide], scratch[4 * wide :]
    groups = (size + 3) // 4
    for group in range(groups + late):
        if group < groups:
            for p in range(count):
                _four_down(image, rows[p, 4 * group :], w, wide, size, four[reach:])
                for row in range(4):
                    line = four[row * wide : (row + 1) * wide]
                    for x in range(reach):
                        line[x] = line[reach + _mirrored(x - reach, size)]
                        line[reach + size + x] = line[reach + _mirrored(size + x, size)]
                at = 4 * wide * (3 * (group % (late + 1)) + p)
                _along(four, w, ring[at : at + 4 * wide - 2 * reach])
        if group >= late:
            done, top = ring[12 * wide * ((group - late) % (late + 1)) :], 4 * (group - late)
            for y in range(min(4, size - top)):
                at, line = y * wide, image[3 * size * (top + y) : 3 * size * (top + y + 1)]
                r = done[at : at + size]
                if count == 3:
                    g, b = done[at + 4 * wide : at + 4 * wide + size], done[at + 8 * wide : at + 8 * wide + size]
                    _store(r, g, b, solarize, norm, line)
                else:
                    _store(r, r, r, solarize, norm, line)


@_fast
def _normalize(source, size, norm, scratch, out):
    """All there is to do to most views of masked images: bytes -> normalised, without planes."""
    scale, offset = scratch[: 3 * size], scratch[3 * size : 6 * size]
    for j in range(3 * size):
        scale[j], offset[j] = norm[j % 3] * float32(1 / 255), norm[3 + j % 3]
    for y in range(size):
        row, line = source[3 * size * y : 3 * size * (y + 1)], out[3 * size * y : 3 * size * (y + 1)]
        for j in range(3 * size):
            line[j] = float32(row[j]) * scale[j] + offset[j]


@_fast
def _finish(source, size, row, norm, rule, scratch, out):
    """One crop (size * size * 3) uint8 and its row of the parameter table -> out (size * size * 3), not flipped.

    rule: reach of the blur in pixels, operation of grayscale, whether that comes first.
    """
    area = size * size
    gray, sigma, solarize = row[8] > 0, row[9], row[10] > 0
    steps, count, contrast = np.empty(5, np.int64), 0, -1
    if gray and rule[2]:
        steps[count] = rule[1]
        count += 1
    for place in range(4):
        operation = int(row[4 + place])
        if operation >= 0 and row[operation] != (_ZERO if operation == 3 else _ONE):
            contrast = count if operation == 1 else contrast
            steps[count] = operation
            count += 1
    if gray and not rule[2]:
        steps[count] = rule[1]
        count += 1
    blurred = sigma > 0 and rule[0] > 0
    if count == 0 and not blurred and not solarize:
        _normalize(source, size, norm, scratch, out)
        return
    tile = scratch[: 12 * size]  # of four rows, which are three planes; in `out` they wait for the mean, and for a blur
    total, mean, last = 0.0, _ZERO, contrast < 0 and not blurred
    for begin in range(0, area, 4 * size):
        end = min(begin + 4 * size, area)
        n = end - begin
        at = tile if last else out[3 * begin : 3 * end]
        r, g, b = at[:n], at[n : 2 * n], at[2 * n : 3 * n]
        _load(source[3 * begin : 3 * end], r, g, b)
        for step in steps[: contrast if contrast >= 0 else count]:
            _operate(step, row[step] if step < 4 else _ZERO, mean, r, g, b)
        if contrast >= 0:
            total += _luma_sum(r, g, b)
        elif last:
            _store(r, g, b, solarize, norm, out[3 * begin : 3 * end])
    if contrast >= 0:
        mean = float32(total / area)
        for begin in range(0, area, 4 * size):
            end = min(begin + 4 * size, area)
            n = end - begin
            at = out[3 * begin : 3 * end]
            if not blurred:
                for i in range(3 * n):
                    tile[i] = at[i]
                at = tile
            r, g, b = at[:n], at[n : 2 * n], at[2 * n : 3 * n]
            for step in steps[contrast:count]:
                _operate(step, row[step] if step < 4 else _ZERO, mean, r, g, b)
            if not blurred:
                _store(r, g, b, solarize, norm, out[3 * begin : 3 * end])
    if blurred:
        one = gray and not rule[2]
        _blurred(out, 1 if one else 3, size, _gauss(sigma, rule[0]), solarize, norm, scratch)


# ---- what is compiled when this file is imported

_PIXELS = numba.types.Array(uint8, 3, "C", readonly=True)  # those of a memory map among them
_FLAT = numba.types.Array(uint8, 1, "C", readonly=True)
_DEEP = numba.types.Array(uint16, 3, "C", readonly=True)
_BYTES, _FLOATS, _TABLE = uint8[::1], float32[::1], float32[:, ::1]
_WHOLE, _WHOLES = numba.int64, numba.int64[::1]


@compiled(
    numba.void(_PIXELS, int32[::1], _WHOLE, _WHOLE, numba.boolean, _BYTES, _BYTES),
)
def _resized(pixels, box, size, radius, flip, scratch, out):
    _crop(pixels, box, size, radius, flip, scratch, out)


@compiled(numba.void(_FLAT, _WHOLE, _WHOLE, int32[::1], _WHOLE, _WHOLE, numba.boolean, _FLOATS, _BYTES))
def _resized_planes(flat, height, width, box, size, radius, flip, scratch, out):
    _plane_crop(flat, height, width, box, size, radius, flip, scratch, out)


@compiled(numba.void(_DEEP, int32[::1], _WHOLE, _WHOLE, _FLOATS, uint16[:, :, ::1]))
def _resized_deep(planes, box, size, radius, scratch, out):
    _deep_crop(planes, box, size, radius, scratch, out)


@compiled(
    numba.void(
        *(_FLAT, _WHOLE, _WHOLE, int32[:, :, ::1], _WHOLE, _WHOLE, _WHOLE, _TABLE, _FLOATS, _WHOLES),
        *(_BYTES, _FLOATS, _FLOATS),
    ),
)
def _viewed_planes(flat, height, width, boxes, sample, size, radius, table, norm, rule, crop, planes, out):
    """`_viewed` of an image that is `Planes`."""
    values = 3 * size * size
    for copy in range(boxes.shape[0]):
        row = copy * boxes.shape[1] + sample
        flip = table[row, 11] > 0
        _plane_crop(flat, height, width, boxes[copy, sample], size, radius, flip, planes, crop[:values])
        _finish(crop[:values], size, table[row], norm, rule, planes, out[row * values : (row + 1) * values])


@compiled(
    numba.void(
        *(_PIXELS, int32[:, :, ::1], _WHOLE, _WHOLE, _WHOLE, _TABLE, _FLOATS, _WHOLES, _BYTES, _FLOATS, _FLOATS)
    ),
)
def _viewed(pixels, boxes, sample, size, radius, table, norm, rule, scratch, planes, out):
    """Every copy of a view of one sample, from the image to its places in the batch."""
    values = 3 * size * size
    crop, rest = scratch[:values], scratch[values:]
    for copy in range(boxes.shape[0]):
        row = copy * boxes.shape[1] + sample
        _crop(pixels, boxes[copy, sample], size, radius, table[row, 11] > 0, rest, crop)
        _finish(crop, size, table[row], norm, rule, planes, out[row * values : (row + 1) * values])


@compiled(
    numba.void(_BYTES, _WHOLE, _WHOLE, _WHOLE, _TABLE, _FLOATS, _WHOLES, _BYTES, _FLOATS, _FLOATS),
)
def _finished(crops, begin, end, size, table, norm, rule, mirror, planes, out):
    """The crops from `begin` to `end`, of which `crops`, `table` and `out` have all."""
    values = 3 * size * size
    for n in range(begin, end):
        source = crops[n * values : (n + 1) * values]
        if table[n, 11] > 0:
            for y in range(size):
                for x in range(size):
                    for c in range(3):
                        mirror[3 * (y * size + x) + c] = source[3 * (y * size + size - 1 - x) + c]
            source = mirror[:values]
        _finish(source, size, table[n], norm, rule, planes, out[n * values : (n + 1) * values])


numba.config.SLP_VECTORIZE = _slp


# ---- Python

_held = threading.local()


def _scratch(height: int, width: int, size: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and floats enough to crop from images of that size and finish views: this thread's own, kept."""
    values = 3 * size * size
    # a crop, the rows of a resize and eight of them turned; planes with a blur's margins and sixteen of its
    # rows, or what eight rows of planes take
    reach = max(reach, 6)
    wanted = 2 * values + 3 * (height + width) * size + 24 * (width + size + 8), (3 * reach + 32) * (size + 2 * reach)
    wanted = wanted[0], max(wanted[1], 12 * size, 24 * (width + 32) + 32 * size)
    bytes_, floats = getattr(_held, "arrays", (np.empty(0, np.uint8), np.empty(0, np.float32)))
    if bytes_.size < wanted[0]:
        bytes_ = np.empty(wanted[0], np.uint8)
    if floats.size < wanted[1]:
        floats = np.empty(wanted[1], np.float32)
    _held.arrays = bytes_, floats
    return bytes_, floats


def resize(pixels: np.ndarray | Planes, box: Sequence[int], interpolation: str, out: np.ndarray) -> None:
    """pixels (H, W, 3) uint8 and a box (left, top, width, height) -> out (size, size, 3) uint8: Pillow's, bit for bit.
    Of `Planes`: within a level of Pillow's of the same image as RGB, most of the time. Of deep pixels (H, W, C) uint16,
    out (size, size, C) uint16: within a level of the exact resize.

    `interpolation` is "bilinear" or "bicubic", with antialiasing.
    """
    size, radius, where = len(out), _RADIUS[interpolation], np.array(box, np.int32)
    scratch, floats = _scratch(*pixels.shape[:2], size, 0)
    if isinstance(pixels, Planes):
        _resized_planes(*pixels, where, size, radius, False, floats, out.reshape(-1))
    elif pixels.dtype == np.uint16:
        _resized_deep(np.ascontiguousarray(pixels.transpose(2, 0, 1)), where, size, radius, floats, out)
    else:
        _resized(np.ascontiguousarray(pixels), where, size, radius, False, scratch, out.reshape(-1))


class ViewMaker:
    """One `ViewSpec` in the form that the compiled loops take. Its methods may be called by several threads."""

    def __init__(self, view: ViewSpec) -> None:
        self._size, self._radius = view.size, _RADIUS.get(view.interpolation, 0)
        self._norm = np.array([*(1 / s for s in view.std), *(-m / s for m, s in zip(view.mean, view.std))], np.float32)
        gray = _GRAY_LUMA if view.gray_weights == "luma" else _GRAY_MEAN
        reach = blur_taps(view.blur_sigma[1]) // 2 if view.blur else 0
        self._rule = np.array([reach, gray, view.gray_first], np.int64)

    def views(
        self, pixels: np.ndarray | Planes, boxes: np.ndarray, table: np.ndarray, sample: int, out: np.ndarray
    ) -> None:
        """All copies of the view of one sample, in one call.

        pixels (H, W, 3) uint8, or `Planes`; boxes (count, B, 4) int32; table (count * B, 12) float32 of
        `parameter_table`; out (count * B, size, size, 3) float32, C-contiguous, of which `count` images are written.
        """
        scratch, planes = _scratch(*pixels.shape[:2], self._size, int(self._rule[0]))
        what = boxes, sample, self._size, self._radius, table, self._norm, self._rule, scratch, planes, out.reshape(-1)
        if isinstance(pixels, Planes):
            _viewed_planes(*pixels, *what)
        else:
            _viewed(np.ascontiguousarray(pixels), *what)

    def finish(self, crops: np.ndarray, table: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        """The colour half of crops[begin:end], (N, size, size, 3) uint8 -> out (N, size, size, 3) float32."""
        scratch, planes = _scratch(0, 0, self._size, int(self._rule[0]))
        constants = self._norm, self._rule, scratch, planes
        _finished(crops.reshape(-1), begin, end, self._size, table, *constants, out.reshape(-1))

    def finish_batch(self, crops: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """`finish` for a whole batch on PyTorch's number of threads: (N, 3, size, size) float32, channels-last."""
        out = torch.empty(crops.shape, dtype=torch.float32)
        arrays = crops.contiguous().numpy(), table.numpy()
        threads = min(torch.get_num_threads(), len(crops)) or 1
        ends = [len(crops) * n // threads for n in range(threads + 1)]
        with ThreadPoolExecutor(threads, thread_name_prefix="headrace-colour") as pool:
            list(pool.map(lambda begin, end: self.finish(*arrays, begin, end, out.numpy()), ends[:-1], ends[1:]))
        return out.permute(0, 3, 1, 2)
