"""What sharding does to one image: check it and keep its bytes, or write it anew as a smaller JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .budget import reserve
from .decode import TooManyPixels, decode, image_size, open_image, read_samples
from .jpeg import MAGIC, jpeg_header
from .rules import rules

_SCALES = 8  # by which libjpeg can shrink each side while it decodes
_PROGRESSIVE = 2  # pixels' worth of memory, one part of it, that libjpeg keeps of each pixel of a progressive file


@dataclass(frozen=True)
class Encoding:
    """When an image keeps its bytes; all others become upright RGB JPEGs of `quality` (1..95), EXIF dropped.

    `max_side`: JPEGs whose longer side is at most that many pixels keep them; None: every image of any format does.
    `plain_jpeg`: for decoders that know nothing else, only upright gray or colour JPEGs do.
    `verify`: what keeps its bytes is decoded to the last pixel all the same.
    """

    max_side: int | None = None
    quality: int = 90
    plain_jpeg: bool = False
    verify: bool = False

    def apply(self, data):
        """(bytes to store, height, width of the upright image): `data` itself, or the bytes of a new JPEG.

        Raises `DecodeError`. The same bytes in give the same bytes out for one version of Pillow and libjpeg.
        """
        try:
            height, width = image_size(data)
        except TooManyPixels as fault:
            if self.max_side is None:
                raise
            return self._jpeg(_reduced(data, self.max_side, fault))
        if self._keeps(data, max(height, width)):
            if self.verify:
                decode(data)
            return data, height, width
        return self._jpeg(Image.fromarray(shrunk(decode(data), self.max_side)))

    def _jpeg(self, image: Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality)
        return np.frombuffer(buffer.getbuffer(), np.uint8), image.height, image.width

    def _keeps(self, data, side: int) -> bool:
        if self.max_side is not None and (side > self.max_side or bytes(data[:3]) != MAGIC):
            return False
        if not self.plain_jpeg:
            return True
        header = jpeg_header(data)
        return header is not None and header.orientation == 1 and header.components != 4


def shrunk(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """(H, W, 3) uint8 whose longer side is at most `side`; as `Encoding` makes it before it writes a JPEG."""
    if side is None or max(pixels.shape[:2]) <= side:
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(_fitted(image.size, side), Image.Resampling.BICUBIC))


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) whose longer side is `side`."""
    return tuple(max(1, round(s * side / max(size))) for s in size)


def _reduced(data, side: int, fault: TooManyPixels) -> Image.Image:
    """An upright image of more pixels than are allowed, its longer side `side`, and never held at its full size:
    libjpeg decodes it at a half, a quarter or an eighth, at least twice as large as it is wanted.

    Raises `fault` for other formats than JPEG, of which Pillow decodes all at once, and for what is too large even so.
    """
    encoded, most = bytes(data), rules().max_pixels
    try:
        image = open_image(encoded, most * _SCALES**2)
    except TooManyPixels:
        raise fault from None
    if image.format not in ("JPEG", "MPO"):
        raise TooManyPixels(f"{fault}; only JPEGs are shrunk while they are decoded")
    wanted, whole = _fitted(image.size, side), image.width * image.height
    image.draft(None, tuple(2 * s for s in wanted))
    if image.width * image.height > most:
        raise fault
    kept = whole // _PROGRESSIVE if image.info.get("progressive") else 0
    with reserve(image.width * image.height + kept):
        upright = Image.fromarray(read_samples(image, encoded))
    return upright.resize(_fitted(upright.size, side), Image.Resampling.BICUBIC)
