"""The loader with FFCV's own pixels, for runs that shall see what models trained with FFCV saw.

FFCV's `Loader` draws its crops from an unseeded generator inside compiled code and decodes anew for every view, takes
what a broken JPEG leaves in memory for an image, and its consumer waits forever when its thread dies. So the two of its
functions that make pixels are called here, by the threads of `CpuLoader`: order, crops, resume and substitutes are
those of every loader. The pixels are not: libjpeg-turbo's fast modes (one grey level from Pillow's on average), and
crops resized by averaging areas, bilinear and bicubic alike. On JPEGs that is no faster than `CpuLoader`.
FFCV's decoder remembers the last image's tables: a JPEG that has lost its own is decoded with those of another.
"""

from __future__ import annotations

import numpy as np
import torch

from ...errors import UserError
from ..images.jpeg import jpeg_header
from ..spec import ViewSpec
from ..views.cut import decode_fast
from ..views.finish import cut_view, rare_crop
from .cpu import CpuLoader


class FfcvLoader(CpuLoader):
    """See `CpuLoader`; the source is a `BetonSource`. Raw pixels are read where they lie in the file."""

    exact = False

    def __init__(self, source, inputs, order, **rest) -> None:
        threads = torch.get_num_threads()
        try:
            from ffcv.libffcv import ctypes_imdecode, ctypes_resize
        except ImportError as fault:
            raise UserError(f"data.loader: ffcv cannot be used ({fault}); pip install 'headrace[ffcv]'") from None
        finally:
            torch.set_num_threads(threads)  # importing FFCV sets it to 1, for the training step as well
        super().__init__(source, inputs, order, **rest)
        self._imdecode, self._resize = ctypes_imdecode, ctypes_resize  # release the GIL, as all calls through ctypes

    def _load(self, index: int):
        pixels = self._attempt("read", index, self.source.pixels, index)
        if pixels is not None:
            return pixels, pixels.shape[:2]
        return None if index in self._bad else super()._load(index)

    def _decode(self, encoded: np.ndarray) -> np.ndarray:
        if encoded.ndim == 3:
            return encoded
        header = jpeg_header(encoded)
        if header is None or header.components != 3 or header.orientation != 1:
            return decode_fast(encoded)
        height, width = header.height, header.width
        pixels = np.empty((height, width, 3), np.uint8)
        crop = (height, width, 0, 0, 1, 1, False, False)  # the whole image at its own size, not flipped
        if self._imdecode(encoded.ctypes.data, encoded.size, height, width, pixels.ctypes.data, *crop):
            return decode_fast(encoded)  # says why, or knows better
        return pixels

    def _own_crop(self, pixels: np.ndarray, view: ViewSpec, place: list[int], out: np.ndarray) -> None:
        if rare_crop(view):
            return cut_view(pixels, view, place, out)
        left, top, width, height = place[:4]
        rows, columns = (top, top + height), (left, left + width)
        self._resize(0, pixels.ctypes.data, *pixels.shape[:2], *rows, *columns, out.ctypes.data, *out.shape[:2])
