"""What sharding does to one image: check it and keep its bytes, or write it anew as a smaller JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import UserError
from .decode import TooManyPixels, decode, image_size
from .jpeg import MAGIC, jpeg_header
from .oversize import fitted, reduced
from .rules import rules


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

    def __post_init__(self) -> None:
        if rules().channels is not None and (self.max_side is not None or self.plain_jpeg):
            which = "--format ffcv" if self.plain_jpeg else "--max-side"
            raise UserError(f"{which}: writes JPEGs, RGB of eight bits, which --channels asks not for; leave one out")

    def apply(self, data):
        """(bytes to store, height, width of the upright image): `data` itself, or the bytes of a new JPEG.

        Raises `DecodeError`. The same bytes in give the same bytes out for one version of Pillow and libjpeg.
        """
        try:
            height, width = image_size(data)
        except TooManyPixels as fault:
            if self.max_side is None:
                raise
            return self._jpeg(reduced(data, self.max_side, fault))
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
    return np.asarray(image.resize(fitted(image.size, side), Image.Resampling.BICUBIC))
