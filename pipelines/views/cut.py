"""One image's share of a batch: fast decoding, and crops written where the batch holds them. Both release the GIL.

With libjpeg-turbo (simplejpeg) an ordinary JPEG takes two thirds of the time it takes Pillow, for the same pixels.
Decoding only the part that the crops of an image need would take off another tenth: nvImageCodec, which comes with
DALI, does so for the same pixels. But then damage outside of that part would go unnoticed, and whether an image counts
as bad would depend on its crops instead of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything
    simplejpeg = None

from ..images.budget import reserve
from ..images.channels import decode_channels
from ..images.decode import check_size, decode
from ..images.jpeg import jpeg_header
from ..images.planes import Planes
from ..images.rules import rules


def decode_fast(data) -> np.ndarray:
    """(H, W, 3) uint8 RGB, equal to `decode.decode` bit for bit; what `decode_channels` gives, of deep images.

    Raises `DecodeError`.
    """
    if rules().channels is not None:
        return decode_channels(data)
    pixels = decode_plain(data)
    return decode(data) if pixels is None else pixels


def decode_plain(data) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of an upright gray or colour JPEG in which libjpeg finds no fault; None for all else.

    Without simplejpeg None for everything. Raises `DecodeError` for more pixels than are allowed.
    """
    header = jpeg_header(data)
    if simplejpeg is None or header is None or header.components == 4 or header.orientation != 1:
        return None
    check_size(header.width, header.height, data)
    try:
        with reserve(header.width * header.height):
            return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # libjpeg's warnings included: whether the file counts as damaged is for Pillow to say
        return None


def as_rgb(pixels: np.ndarray | Planes) -> np.ndarray:
    """(H, W, 3) uint8 of whatever an image's pixels are."""
    if isinstance(pixels, Planes):
        from .yuv import to_rgb  # numba, as below

        return to_rgb(pixels)
    return pixels


def crop_and_resize(pixels: np.ndarray | Planes, box: Sequence[int], interpolation: str, out: np.ndarray) -> None:
    """pixels (H, W, 3) uint8 and a box (left, top, width, height) -> out (size, size, 3) uint8: Pillow's, bit for bit,
    but for `Planes`, whose chroma is half as fine. Deep pixels (H, W, C) uint16 -> uint16, rounded once.

    `interpolation` is "bilinear" or "bicubic", antialiased.
    """
    from .cpu_augment import resize  # numba takes half a second to import, which loaders on GPUs can do without

    resize(pixels, box, interpolation, out)
