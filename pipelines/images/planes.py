"""Pixels as luma and, at half the resolution, chroma: half the bytes of RGB."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Planes(NamedTuple):
    """An upright image in JFIF's full-range YCbCr, 4:2:0, samples of chroma in the middle of four of luma.

    `flat`: (bytes,) uint8, C-contiguous: Y (height, width), Cb and Cr (half of each, rounded up), one behind another.
    """

    flat: np.ndarray
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the image as RGB."""
        return self.height, self.width, 3


def planes_size(height: int, width: int) -> int:
    """Bytes of `Planes.flat`."""
    return height * width + 2 * -(-height // 2) * -(-width // 2)
