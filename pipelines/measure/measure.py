"""An image -> a row of figures, and a thumbnail, of which its hashes are made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from ..images.decode import image_size
from ..images.reduced import decode_reduced
from .hashes import SIDE, block_hash, dct_hash
from .jpeg_quality import jpeg_quality
from .letters import letters
from .statistics import statistics

LEAST = 128  # pixels of the shorter side at which images are looked at, whatever their size: up to twice as many
_BARS = 0.02  # the share of an image that bars must take to be some

COLUMNS = {  # what each is, for tables and pages
    "readable": "whether it can be decoded",
    "width": "pixels, upright",
    "height": "pixels, upright",
    "bytes": "of the encoded image",
    "aspect": "width / height",
    "bytes_per_pixel": "encoded bytes per pixel",
    "brightness": "mean luma, 0 black to 1 white",
    "contrast": "standard deviation of luma, 0 to 0.5",
    "sharpness": "variance of the Laplacian of luma, in squared grey levels",
    "saturation": "mean of (max - min) / max over R, G and B, 0 gray to 1",
    "entropy": "of the histogram of luma, 0 to 8 bits",
    "commonest": "share of the pixels whose colour is the commonest of 4,096",
    "text": "share of its blocks of 16 x 16 pixels that look like letters",
    "border": "share of its area that uniform bars at its edges take",
    "jpeg_quality": "libjpeg's 1 to 100 by its table for luma; NaN for other formats",
    "dct_hash": "64 bits: imagehash's phash",
    "block_hash": "64 bits: 8 x 8 blocks above their median",
}
_WHOLE = {"readable": "?", "width": "<i4", "height": "<i4", "bytes": "<i8", "dct_hash": "<u8", "block_hash": "<u8"}
MEASURED = np.dtype([(name, _WHOLE.get(name, "<f4")) for name in COLUMNS])


class Measurement(NamedTuple):
    """What `measure` finds of an image."""

    row: np.void  # of MEASURED, still without hashes: see `add_hashes`
    thumb: np.ndarray  # (32, 32) uint8: luma of the whole image
    inner: np.ndarray | None  # the same of what uniform bars are around; None: there are none


def measure(data) -> Measurement:
    """Figures and thumbnail of an encoded image: `COLUMNS` says what they are.

    Looked at with its shorter side at 128 to 255 pixels (`decode_reduced`), so that figures of a photo do not depend on
    how large it is stored. Raises `DecodeError`.
    """
    height, width = image_size(data)
    pixels = decode_reduced(data, LEAST)
    luma, figures, (top, left, bottom, right) = statistics(pixels)
    thumb, inner = thumbnail(luma), None
    border = 1 - (bottom - top) * (right - left) / luma.size
    if border >= _BARS:
        inner = thumbnail(luma[top:bottom, left:right])
    row = np.zeros((), MEASURED)
    row["readable"], row["width"], row["height"], row["bytes"] = True, width, height, len(data)
    row["aspect"], row["bytes_per_pixel"] = width / height, len(data) / (width * height)
    for name, value in zip(("brightness", "contrast", "sharpness", "saturation", "entropy", "commonest"), figures):
        row[name] = value
    row["text"], row["border"], row["jpeg_quality"] = letters(luma), border, jpeg_quality(data)
    return Measurement(row[()], thumb, inner)


def add_hashes(rows: np.ndarray, thumbs: np.ndarray) -> None:
    """Puts the hashes of thumbnails (N, 32, 32) into rows (N,) of MEASURED: at once for many, which costs a tenth."""
    rows["dct_hash"], rows["block_hash"] = dct_hash(thumbs), block_hash(thumbs)


def unreadable(size: int) -> np.void:
    """The row of an image of `size` bytes that cannot be decoded."""
    row = np.zeros((), MEASURED)
    for name in MEASURED.names:
        if MEASURED[name].kind == "f":
            row[name] = np.nan
    row["bytes"] = size
    return row[()]


def thumbnail(luma: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (32, 32) uint8, by Lanczos."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(luma)).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
