"""Perceptual hashes: 64 bits that stay nearly the same when a picture is encoded anew, resized or made brighter."""

from __future__ import annotations

import numpy as np

SIDE = 32  # pixels of a thumbnail
ORIENTATIONS = tuple((turned, upside, mirrored) for turned in (0, 1) for upside in (0, 1) for mirrored in (0, 1))
WHOLE = (0.0, 0.0, 0.0, 0.0)  # a part of a thumbnail: stretch - 1 and shift in pixels of x, then of y
_LOW = 8  # frequencies in each direction
_AT_ONCE = 1 << 14  # thumbnails
_BIT = np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)


def dct_hash(thumbs: np.ndarray) -> np.ndarray:
    """(N, 32, 32) uint8 -> (N,) uint64: which of the 8 x 8 lowest coefficients of the DCT are above their median, the
    first one in the highest bit. It is `imagehash.phash`, for thumbnails made as there: luma, resized by Lanczos.
    """
    return _hashed(thumbs, lambda part: dct_hash_of(coefficients(part)))


def block_hash(thumbs: np.ndarray) -> np.ndarray:
    """(N, 32, 32) uint8 -> (N,) uint64: which of 8 x 8 blocks are brighter than their median (Yang et al. 2006)."""
    blocks = lambda part: part.reshape(-1, _LOW, SIDE // _LOW, _LOW, SIDE // _LOW).sum((2, 4), dtype=np.int64)
    return _hashed(thumbs, lambda part: _bits(blocks(part)))


def coefficients(thumbs: np.ndarray, part: tuple[float, float, float, float] = WHOLE) -> np.ndarray:
    """(N, 32, 32) -> (N, 8, 8) float64: sums of thumbnail times cosines (DCT-II), or of a part of it made as large.

    Rounded to a thousandth: coefficients of a picture that is symmetric are 0 and not some rounding of it, on every
    machine, so its mirror image has the same hash.
    """
    across, down = (_waves() @ _resampled(*part[at : at + 2]) for at in (0, 2))
    return (down @ thumbs.astype(np.float64) @ across.T).round(3)


def dct_hash_of(low: np.ndarray, orientation: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """(N,) uint64: the hash by coefficients (N, 8, 8) of thumbnails that would be `oriented`, without making them."""
    turned, upside, mirrored = orientation
    low = low.transpose(0, 2, 1) if turned else low
    signs = (-1.0) ** np.arange(_LOW)
    low = low * (signs[:, None] if upside else 1) * (signs if mirrored else 1)
    return _bits(low)


def oriented(thumb: np.ndarray, orientation: tuple[int, int, int]) -> np.ndarray:
    """(..., H, W) turned by transposing, then upside down, then mirrored, as (turned, upside, mirrored) says: all
    eight ways in which a square lies on itself."""
    turned, upside, mirrored = orientation
    thumb = thumb.swapaxes(-1, -2) if turned else thumb
    return thumb[..., :: -1 if upside else 1, :: -1 if mirrored else 1]


def _bits(values: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), 64)
    return ((values > np.median(values, axis=1, keepdims=True)) * _BIT).sum(1, dtype=np.uint64)


def _hashed(thumbs: np.ndarray, hashed) -> np.ndarray:
    parts = [hashed(np.asarray(thumbs[at : at + _AT_ONCE])) for at in range(0, len(thumbs), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _waves() -> np.ndarray:
    """(8, 32) cosines, twice as high as in the textbook: scipy's convention, which changes no bit."""
    k, x = np.arange(_LOW)[:, None], np.arange(SIDE)
    return 2 * np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))


def _resampled(stretch: float, shift: float) -> np.ndarray:
    """(32, 32) that takes a line of 32 pixels at other places, by linear interpolation."""
    centre = (SIDE - 1) / 2
    places = np.clip((np.arange(SIDE) - centre) * (1 + stretch) + shift + centre, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(SIDE)))
