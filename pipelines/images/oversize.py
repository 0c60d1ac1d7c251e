"""Images of more pixels than are allowed, made smaller while they are decoded, so that none is held at its full size.

JPEG: libjpeg decodes it at a half, a quarter or an eighth. PNG and TIFF: libvips reads their rows, strips or tiles one
after the other and averages them. Either way the image is at least twice as large as it is wanted, and the rest is the
bicubic resize of all other images. What has to be in memory as a whole before the first row is known, such as an
interlaced PNG, stays refused.
"""

from __future__ import annotations

import math
import os

import numpy as np
from PIL import Image

from . import deep
from .budget import reserve
from .decode import DecodeError, TooManyPixels, open_image, read_samples
from .rules import rules

_SCALES = 8  # by which libjpeg can shrink each side while it decodes
_PROGRESSIVE = 2  # pixels' worth of memory, one part of it, that libjpeg keeps of each pixel of a progressive file
_COLUMN = 768  # pixels' worth of memory that libvips takes for each column; measured: 20,000 columns take up to 150 MB
_INTERLACED = 28  # where the header of a PNG says so
_ROWS_PER_STRIP, _TILES = 278, 322  # tags of TIFF; the second is the width of its tiles
_COLOURS = ("b-w", "srgb", "rgb", "grey16", "rgb16")  # libvips' names of what is read here
_UPRIGHT = {i + 2: turn for i, turn in enumerate((0, 3, 1, 5, 4, 6, 2))}  # EXIF orientation -> Image.Transpose


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) whose longer side is `side`."""
    return tuple(max(1, round(s * side / max(size))) for s in size)


def reduced(data, side: int, fault: TooManyPixels) -> Image.Image:
    """An upright RGB image of too many pixels, its longer side `side`, of at most 64 times as many as are allowed.

    Raises `fault`, with the reason, for what cannot be decoded in parts, and for what is too large even so.
    """
    encoded, most = bytes(data), rules().max_pixels
    try:
        image = open_image(encoded, most * _SCALES**2)
    except TooManyPixels:
        raise fault from None
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        upright = _by_libjpeg(image, encoded, side, fault)
    elif image.format in ("PNG", "TIFF"):
        upright = _by_libvips(image, encoded, side, fault)
    else:
        raise TooManyPixels(f"{fault}; only JPEG, PNG and TIFF are shrunk while they are decoded")
    aspect = upright.width / upright.height  # rounded, and perhaps turned
    size = min((width, height), (height, width), key=lambda size: abs(math.log(aspect * size[1] / size[0])))
    return upright.resize(fitted(size, side), Image.Resampling.BICUBIC)


def _by_libjpeg(image: Image.Image, encoded: bytes, side: int, fault: TooManyPixels) -> Image.Image:
    wanted, whole = fitted(image.size, side), image.width * image.height
    image.draft(None, tuple(2 * s for s in wanted))
    if image.width * image.height > rules().max_pixels:
        raise fault
    kept = whole // _PROGRESSIVE if image.info.get("progressive") else 0
    with reserve(image.width * image.height + kept):
        return Image.fromarray(read_samples(image, encoded))


def _by_libvips(image: Image.Image, encoded: bytes, side: int, fault: TooManyPixels) -> Image.Image:
    if image.format == "PNG" and encoded[_INTERLACED]:
        why = "an interlaced PNG is decoded all at once; save it without interlacing, or raise the limit"
        raise TooManyPixels(f"{fault}; {why}")
    strip = 0
    if image.format == "TIFF" and _TILES not in image.tag_v2:
        strip = min(image.tag_v2.get(_ROWS_PER_STRIP, image.height), image.height) * image.width
    if strip > rules().max_pixels:
        why = f"a strip of its TIFF has {strip:,}; save it in smaller strips or in tiles, or raise the limit"
        raise TooManyPixels(f"{fault}; {why}")
    if math.prod(min(s, 2 * w) for s, w in zip(image.size, fitted(image.size, side))) > rules().max_pixels:
        raise fault
    vips, options = _libvips(fault), {"unlimited": True} if strip else {}  # else strips of 50 MB and less
    try:
        with reserve(image.width * _COLUMN + strip):
            rows = vips.Image.new_from_buffer(encoded, "", access="sequential", fail_on="error", **options)
            kind, colours = rows.format, rows.interpretation
            if kind not in ("uchar", "ushort") or colours not in _COLOURS:
                raise TooManyPixels(f"{fault}; {colours} of type {kind} is not shrunk while it is decoded")
            rows = rows.extract_band(0, n=3 if rows.bands > 2 else 1)  # without alpha
            if kind == "ushort" and rows.bands == 3:  # the upper bytes, as everywhere
                rows, kind = (rows >> 8).cast("uchar"), "uchar"
            orientation = rows.get("orientation") if rows.get_typeof("orientation") else 1
            stored = rows.width, rows.height
            small = rows.shrink(*(max(1.0, s / (2 * w)) for s, w in zip(stored, fitted(stored, side))))
            shape = small.height, small.width, small.bands
            values = np.frombuffer(small.write_to_memory(), np.uint8 if kind == "uchar" else np.uint16).reshape(shape)
    except vips.Error as problem:
        raise DecodeError(f"undecodable pixels ({' '.join(str(problem).split())})") from None
    pixels = values if kind == "uchar" else deep.Samples(values, 0, 65535).as_bytes(rules().range)
    upright = Image.fromarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def _libvips(fault: TooManyPixels):
    """The module. Raises `fault` where there is none."""
    os.environ.setdefault("VIPS_CONCURRENCY", "1")  # a thread for each image, as with all others
    try:
        import pyvips
    except (ImportError, OSError):  # the package, or the library that it calls
        raise TooManyPixels(f"{fault}; to shrink it while it is decoded: pip install 'headrace[huge]'") from None
    pyvips.cache_set_max(0)
    return pyvips
