"""Whether two thumbnails show the same picture: what hashes bring together is held against each other here.

The second thumbnail is laid onto the first by Gauss-Newton steps (Lucas and Kanade 1981) over the size and place of
both sides and over brightness and contrast, so a picture that was cut by a few percent still fits. Then two
correlations count, over what both show: that of the thumbnails, and that of their details, what is left without means
over 5 x 5 pixels. Skies and other gradients fit each other as well as a copy does, but their details do not.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, float64, int64, uint8, void
from numba.types import UniTuple

from ..numba_cache import compiled
from . import hashes
from .hashes import SIDE

WHOLE, DETAIL = 0.85, 0.6  # correlations from which two thumbnails are the same picture: docs/know.md has the figures
LEAST_CONTRAST = 4.0  # standard deviation in grey levels below which a thumbnail shows nothing to go by
_STEPS, _ENOUGH = 8, 0.98  # steps; the correlation at which none is needed
_SHIFT, _SCALE = 4.0, 0.16  # pixels and share by which the second may be moved and stretched
_OVERLAP = 0.6  # the least share of the first that the second must cover


def likeness(
    first: np.ndarray, second: np.ndarray, part: tuple[float, float, float, float] = hashes.WHOLE
) -> np.ndarray:
    """(P, 32, 32) and (P, 32, 32) uint8 -> (P, 2) float32: correlation of whole and of details, after laying the
    second onto the first. -1 where one of them has no contrast, or they fit nowhere.

    `part` of the second is what the first is thought to show, as in `hashes.coefficients`: where the steps begin.
    """
    found = np.empty((len(first), 2), np.float32)
    _compare(np.ascontiguousarray(first), np.ascontiguousarray(second), np.array(part), found)
    return found


def same_picture(found: np.ndarray) -> np.ndarray:
    """(P,) bool for what `likeness` found."""
    return (found[:, 0] >= WHOLE) & (found[:, 1] >= DETAIL)


_PIXELS = float64[:, ::1]


@compiled(void(_PIXELS, _PIXELS))
def _details(pixels, out):
    """Pixels minus the mean of 5 x 5 around them, at edges of as many as both sides have: a slope has no details."""
    rows = np.empty((SIDE, SIDE))
    for y in range(SIDE):
        for x in range(SIDE):
            reach = min(2, x, SIDE - 1 - x)
            low, high = x - reach, x + reach + 1
            total = 0.0
            for k in range(low, high):
                total += pixels[y, k]
            rows[y, x] = total / (high - low)
    for y in range(SIDE):
        reach = min(2, y, SIDE - 1 - y)
        low, high = y - reach, y + reach + 1
        for x in range(SIDE):
            total = 0.0
            for k in range(low, high):
                total += rows[k, x]
            out[y, x] = pixels[y, x] - total / (high - low)


@compiled(UniTuple(float64, 3)(_PIXELS, float64, float64))
def _between(pixels, u, v):
    """What lies at column `u` and row `v`, between four pixels, and how it changes along the row and down."""
    left, top = min(int64(u), SIDE - 2), min(int64(v), SIDE - 2)
    fu, fv = u - left, v - top
    a, b = pixels[top, left], pixels[top, left + 1]
    c, d = pixels[top + 1, left], pixels[top + 1, left + 1]
    upper, lower = a * (1 - fu) + b * fu, c * (1 - fu) + d * fu
    return upper * (1 - fv) + lower * fv, (b - a) * (1 - fv) + (d - c) * fv, lower - upper


@compiled(float64(_PIXELS, _PIXELS, float64[::1], float64[::1]))
def _correlation(first, second, place, out):
    """Of `first` and `second` at `place` (stretch and shift of x, of y), -1 if they hardly meet; out: gain, offset."""
    n, sa, sb, saa, sbb, sab = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    centre = (SIDE - 1) / 2
    for y in range(SIDE):
        v = (y - centre) * (1 + place[2]) + place[3] + centre
        if v < 0 or v > SIDE - 1:
            continue
        for x in range(SIDE):
            u = (x - centre) * (1 + place[0]) + place[1] + centre
            if u < 0 or u > SIDE - 1:
                continue
            a, b = first[y, x], _between(second, u, v)[0]
            n, sa, sb, saa, sbb, sab = n + 1, sa + a, sb + b, saa + a * a, sbb + b * b, sab + a * b
    if n < _OVERLAP * SIDE * SIDE:
        return -1.0
    va, vb, cov = saa - sa * sa / n, sbb - sb * sb / n, sab - sa * sb / n
    if va < 1e-6 * n or vb < 1e-6 * n:
        return -1.0
    out[0] = cov / vb
    out[1] = (sa - out[0] * sb) / n
    return cov / math.sqrt(va * vb)


@compiled(void(_PIXELS, _PIXELS, float64[::1], float64[::1]))
def _step(first, second, place, gain):
    """One step of `place` towards the least squared difference of `first` and gain * `second` + offset."""
    normal, rhs, j = np.zeros((6, 6)), np.zeros(6), np.empty(6)
    centre = (SIDE - 1) / 2
    for y in range(1, SIDE - 1):
        v = (y - centre) * (1 + place[2]) + place[3] + centre
        if v < 0 or v > SIDE - 1:
            continue
        for x in range(1, SIDE - 1):
            u = (x - centre) * (1 + place[0]) + place[1] + centre
            if u < 0 or u > SIDE - 1:
                continue
            b, along, down = _between(second, u, v)
            j[0], j[1] = gain[0] * along * (x - centre), gain[0] * along
            j[2], j[3] = gain[0] * down * (y - centre), gain[0] * down
            j[4], j[5] = b, 1.0
            residual = first[y, x] - gain[0] * b - gain[1]
            for k in range(6):
                rhs[k] += j[k] * residual
                for m in range(k, 6):
                    normal[k, m] += j[k] * j[m]
    for k in range(6):
        normal[k, k] = normal[k, k] * 1.001 + 1e-9  # damped, and never singular
        for m in range(k):
            normal[k, m] = normal[m, k]
    for k in range(6):  # Gauss elimination: positive definite, so no pivots are needed
        for m in range(k + 1, 6):
            factor = normal[m, k] / normal[k, k]
            rhs[m] -= factor * rhs[k]
            for c in range(k, 6):
                normal[m, c] -= factor * normal[k, c]
    for k in range(5, -1, -1):
        for c in range(k + 1, 6):
            rhs[k] -= normal[k, c] * rhs[c]
        rhs[k] /= normal[k, k]
    for k in range(4):
        most = _SCALE if k % 2 == 0 else _SHIFT
        place[k] = min(max(place[k] + rhs[k], -most), most)


@compiled(void(uint8[:, :, ::1], uint8[:, :, ::1], float64[::1], float32[:, ::1]))
def _compare(first, second, start, out):
    a, b, da, db = np.empty((SIDE, SIDE)), np.empty((SIDE, SIDE)), np.empty((SIDE, SIDE)), np.empty((SIDE, SIDE))
    place, best, gain = np.empty(4), np.empty(4), np.empty(2)
    for pair in range(len(first)):
        for y in range(SIDE):
            for x in range(SIDE):
                a[y, x], b[y, x] = first[pair, y, x], second[pair, y, x]
        if a.std() < LEAST_CONTRAST or b.std() < LEAST_CONTRAST:
            out[pair, 0], out[pair, 1] = -1, -1
            continue
        place[:], best[:] = start, start
        whole = _correlation(a, b, place, gain)
        for _ in range(_STEPS if whole < _ENOUGH else 0):
            _step(a, b, place, gain)
            now = _correlation(a, b, place, gain)
            if now > whole:
                best[:] = place
                whole = now
            if now < 0:
                break
        _details(a, da)
        _details(b, db)
        out[pair, 0] = whole
        out[pair, 1] = _correlation(da, db, best, gain)
