"""Pixels of an image at a half, a quarter or an eighth of its sides, for whoever needs no more."""

from __future__ import annotations

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything
    simplejpeg = None

from .budget import reserve
from .decode import check_size, decode
from .jpeg import jpeg_header
from .rules import rules


def decode_reduced(data, least: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, the shorter side in [least, 2 least) if it is longer than that in the file.

    libjpeg shrinks ordinary JPEGs while it decodes, by a half, a quarter or an eighth; what is left to shrink, and
    images of other kinds, are means over squares of pixels. Raises `DecodeError` for what is no complete image.
    """
    pixels = _jpeg(data, least) if rules().channels is None else None
    pixels = decode(data) if pixels is None else pixels
    factor = min(pixels.shape[:2]) // least
    return np.array(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels


def _jpeg(data, least: int) -> np.ndarray | None:
    """None for what is for Pillow to decode, or to say what is wrong with it."""
    header = jpeg_header(data)
    if simplejpeg is None or header is None or header.components == 4 or header.orientation != 1:
        return None
    check_size(header.width, header.height, data)
    factor = min(min(header.height, header.width) // least, 8)
    factor = 1 << max(factor, 1).bit_length() - 1  # libjpeg has eighths of all kinds, of which only these are fast
    size = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)}
    try:
        with reserve(header.width * header.height):
            return simplejpeg.decode_jpeg(data, "RGB", **size)
    except ValueError:  # libjpeg's warnings, too
        return None
