"""JPEG XL for Pillow, decoded by libjxl as imagecodecs, an extra, has it: the size at opening, pixels at loading.

The size stands in the first bytes of the codestream (ISO/IEC 18181-1, annex D); others' plug-ins decode an image whole
to learn it, before anybody can refuse it for its size or reserve memory.
"""

from __future__ import annotations

import importlib

import numpy as np
from PIL import Image, ImageFile

from .formats import JPEG_XL

KIND = "JXL"
_CONTAINER, _STREAM = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\n"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width : height
_SIDES = (9, 13, 18, 30)  # bits of a side less one, by two bits before it
_HEAD = 32  # bytes of the codestream that hold the size and the orientation, and more


def header(data: bytes) -> tuple[int, int]:
    """(width, height) of the upright image. Raises `SyntaxError`, as Pillow's plug-ins do."""
    stream = _codestream(data)
    if not stream.startswith(_STREAM) or len(stream) < 4:
        raise SyntaxError("no codestream of JPEG XL")
    bits, at = int.from_bytes(stream[len(_STREAM) :].ljust(_HEAD, b"\0"), "little"), 0

    def take(count: int) -> int:
        nonlocal at
        value = bits >> at & (1 << count) - 1
        at += count
        return value

    def side() -> int:
        return 8 * (1 + take(5)) if eighths else 1 + take(_SIDES[take(2)])

    eighths = take(1)
    height = side()
    ratio = take(3)
    width = height * _RATIOS[ratio][0] // _RATIOS[ratio][1] if ratio else side()
    turned = not take(1) and take(1) and take(3) >= 4  # metadata not by default, more of it, orientation from 5 on
    return (height, width) if turned else (width, height)


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, which may lie in a box."""
    if not data.startswith(_CONTAINER):
        return data[:_HEAD]
    at = len(_CONTAINER)
    while at + 8 <= len(data):
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")  # the number of the part
            return data[start : start + _HEAD]
        if size < start - at:  # 0: up to the end
            break
        at += size
    return b""


def _accept(prefix: bytes) -> bool:
    return prefix.startswith((_STREAM, _CONTAINER))


class JpegXlFile(ImageFile.ImageFile):
    """The first frame, upright; more than eight bits of colour are cut to the upper eight."""

    format, format_description = KIND, "JPEG XL"

    def _open(self) -> None:
        self._data = self.fp.read()
        self._size, self._mode = header(self._data), "RGB"  # the mode shows when it is decoded
        self.tile = []

    def load(self):
        if self._data is not None:
            decode = importlib.import_module(JPEG_XL).jpegxl_decode
            pixels = decode(self._data, index=0, numthreads=1)
            if pixels.shape[:2] != self.size[::-1]:
                raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels, where its header says other")
            image = Image.fromarray(_plain(pixels))
            self.im, self._mode, self._data = image.im, image.mode, None
        return super().load()


def _plain(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of 8 or 16 bits or floating point, or (H, W, 3) of 8, without what is behind the colours."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    pixels = pixels.reshape(*pixels.shape[:2], channels)[..., : 3 if channels >= 3 else 1]
    if pixels.shape[2] == 3 and pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] == 3 and pixels.dtype != np.uint8:
        raise ValueError("colour in floating point")
    return np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def register() -> None:
    """Pillow knows the format from here on."""
    Image.register_open(KIND, JpegXlFile, _accept)
    Image.register_extension(KIND, ".jxl")
