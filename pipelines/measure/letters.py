"""How much of an image looks like letters: documents, slides, screens. Told by strokes, not by reading them."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint8

from ..numba_cache import compiled

_SIDE = 16  # pixels of a block
_GROUND, _INK, _OTHER = 0.35, 0.08, 0.01  # shares of a block: at least, at least, at most
_GREY = 16  # levels within which ground is ground
_CONTRAST = 56  # levels from the middle of the ground from which on something else is ink
_ACROSS, _DOWN = 26, 18  # changes between ground and ink along the rows of a block, and along its columns
_CHANCE = 0.8  # of the changes that as much ink would make if it lay by chance, as in noise: strokes hang together


@compiled(int64(int64))
def _tone(off):
    """1 for ink, -1 for ground, 0 for what lies between them: edges of strokes."""
    return 1 if off >= _CONTRAST else (-1 if off <= _GREY else 0)


@compiled(float64(uint8[:, ::1]))
def letters(luma):
    """(H, W) uint8 -> the share of its 16 x 16 blocks that look like letters; 0 of an image smaller than a block.

    Such a block has a ground, 32 neighbouring grey levels that hold 35 % or more of its pixels; ink, 8 % or more that
    are 56 levels or more off the middle of the ground, all but 1 % on one side; and strokes in both directions: rows
    change 26 times between ground and ink, columns 18 times, though at most 0.8 times as often as by chance.
    """
    levels, total, found = np.zeros(32, np.int64), 0, 0
    for top in range(0, luma.shape[0] - _SIDE + 1, _SIDE):
        for left in range(0, luma.shape[1] - _SIDE + 1, _SIDE):
            total += 1
            levels[:] = 0
            for y in range(top, top + _SIDE):
                for x in range(left, left + _SIDE):
                    levels[luma[y, x] >> 3] += 1
            most, at = -1, 0
            for k in range(29):
                n = levels[k] + levels[k + 1] + levels[k + 2] + levels[k + 3]
                if n > most:
                    most, at = n, k
            if most < _GROUND * _SIDE * _SIDE:
                continue
            middle = 8 * (at + 2)
            dark, light = 0, 0
            for y in range(top, top + _SIDE):
                for x in range(left, left + _SIDE):
                    off = int64(luma[y, x]) - middle
                    dark += off <= -_CONTRAST
                    light += off >= _CONTRAST
            ink, other = max(dark, light), min(dark, light)
            if ink < _INK * _SIDE * _SIDE or other > _OTHER * _SIDE * _SIDE:
                continue
            sign = 1 if light > dark else -1
            across, down = 0, 0
            for line in range(_SIDE):
                before_x, before_y = 0, 0
                for step in range(_SIDE):
                    here = _tone((int64(luma[top + line, left + step]) - middle) * sign)
                    if here != 0:
                        across += here == -before_x
                        before_x = here
                    here = _tone((int64(luma[top + step, left + line]) - middle) * sign)
                    if here != 0:
                        down += here == -before_y
                        before_y = here
            chance = 4 * _SIDE * (_SIDE - 1) * (ink / _SIDE**2) * (1 - ink / _SIDE**2)
            found += across >= _ACROSS and down >= _DOWN and across + down <= _CHANCE * chance
    return found / total if total else 0.0
