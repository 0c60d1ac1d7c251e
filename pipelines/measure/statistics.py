"""Figures of an image's pixels. Two passes over them, compiled: numpy would make some twenty."""

from __future__ import annotations

import math

import numpy as np
from numba import float64, int64, types, uint8, void

from ..numba_cache import compiled

FIGURES = ("brightness", "contrast", "sharpness", "saturation", "entropy", "commonest")
_SHADES = 16  # levels a channel, within which colours count as one
_FLAT, _SAME = 16, 8  # grey levels: the range within a line of a bar, and the difference between its lines


def statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """(H, W, 3) uint8 -> luma (H, W) uint8, figures (6,) float64 in the order of `FIGURES`, and what lies inside of
    uniform bars at the edges: (top, left, bottom, right), the latter two exclusive.

    Luma is Pillow's (ITU-R 601-2, rounded). For the meaning of the figures see `measure`.
    """
    pixels = np.ascontiguousarray(pixels)
    luma, figures, box = np.empty(pixels.shape[:2], np.uint8), np.empty(len(FIGURES)), np.empty(4, np.int64)
    _figures(pixels, luma, figures)
    _content(luma, box)
    return luma, figures, tuple(box.tolist())


@compiled(void(types.Array(uint8, 3, "C", readonly=True), uint8[:, ::1], float64[::1]))
def _figures(pixels, luma, out):
    height, width = luma.shape
    levels, colours = np.zeros(256, np.int64), np.zeros(_SHADES**3, np.int64)
    saturation = 0.0
    for y in range(height):
        for x in range(width):
            r, g, b = int64(pixels[y, x, 0]), int64(pixels[y, x, 1]), int64(pixels[y, x, 2])
            grey = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
            luma[y, x] = grey
            levels[grey] += 1
            colours[(r >> 4) << 8 | (g >> 4) << 4 | b >> 4] += 1
            high = max(r, g, b)
            if high > 0:
                saturation += (high - min(r, g, b)) / high
    count, total, squares, entropy = height * width, 0, 0, 0.0
    for level in range(256):
        n = levels[level]
        total += level * n
        squares += level * level * n
        if n > 0:
            entropy -= n / count * math.log2(n / count)
    mean = total / count
    out[0] = mean / 255
    out[1] = math.sqrt(max(0.0, squares / count - mean * mean)) / 255
    out[3] = saturation / count
    out[4] = entropy
    out[5] = colours.max() / count
    edges, edges_squared = 0, 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            around = int64(luma[y - 1, x]) + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1]
            edge = around - 4 * int64(luma[y, x])
            edges += edge
            edges_squared += edge * edge
    inside = max(1, (height - 2) * (width - 2)) if height > 2 and width > 2 else 1
    out[2] = edges_squared / inside - (edges / inside) ** 2


@compiled(void(uint8[:, ::1], int64[::1]))
def _content(luma, box):
    height, width = luma.shape
    top, left, bottom, right = 0, 0, height, width
    for side in range(4):  # columns are looked at within the rows that are left
        first, depth = 0.0, 0
        most = bottom - top if side < 2 else right - left
        for step in range(most):
            low, high, total, count = 255, 0, 0, 0
            if side < 2:
                y = top + step if side == 0 else bottom - 1 - step
                for x in range(left, right):
                    value = int64(luma[y, x])
                    low, high, total, count = min(low, value), max(high, value), total + value, count + 1
            else:
                x = left + step if side == 2 else right - 1 - step
                for y in range(top, bottom):
                    value = int64(luma[y, x])
                    low, high, total, count = min(low, value), max(high, value), total + value, count + 1
            mean = total / count
            if step == 0:
                first = mean
            if high - low > _FLAT or abs(mean - first) > _SAME:
                break
            depth = step + 1
        if depth == most:  # uniform throughout: there is nothing that bars would be around
            top, left, bottom, right = 0, 0, height, width
            break
        if side == 0:
            top += depth
        elif side == 1:
            bottom -= depth
        elif side == 2:
            left += depth
        else:
            right -= depth
    box[0], box[1], box[2], box[3] = top, left, bottom, right
