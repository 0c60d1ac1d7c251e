"""Encoded bytes -> upright RGB pixels: the definition that every loader follows.

Any format Pillow reads; the first frame of animations; EXIF orientation applied; alpha composited on nothing (its
channel is dropped); grayscale repeated three times; 16-bit grayscale brought to 8 bits. A truncated file is an error,
never a half-grey picture.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .jpeg import ORIENTATION, jpeg_header

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # to `_check_size` that is an error


class DecodeError(ValueError):
    """These bytes are not a complete image; the message says why."""


def _open(data) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise DecodeError("not an image in any known format" if len(data) else "empty file") from None
    except Image.DecompressionBombError as fault:
        raise DecodeError(f"more pixels than PIL.Image.MAX_IMAGE_PIXELS allows ({fault})") from None
    except Exception as fault:  # Pillow's plug-ins raise almost anything on hostile headers
        raise DecodeError(f"unreadable header ({fault})") from None
    _check_size(*image.size, len(data) if image.format == "JPEG" else None)
    return image


def _check_size(width: int, height: int, jpeg_bytes: int | None) -> None:
    """Raises `DecodeError` for a header that asks for more memory than the image can be worth."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise DecodeError(f"more pixels than PIL.Image.MAX_IMAGE_PIXELS allows ({width}x{height})")
    # every 8x8 block takes a Huffman code of at least one bit
    if jpeg_bytes is not None and width * height > 512 * jpeg_bytes:
        raise DecodeError(f"too few bytes for a JPEG of {width}x{height} pixels ({jpeg_bytes:,})")


def _jpeg_scan(encoded: bytes) -> int:
    """Offset of the first start-of-scan marker: the thumbnail inside the EXIF block has end markers of its own."""
    offset = 2
    while offset + 4 <= len(encoded) and encoded[offset + 1] != 0xDA:
        offset += 2 + int.from_bytes(encoded[offset + 2 : offset + 4], "big") if encoded[offset + 1] != 0xFF else 1
    return offset


def _check_complete(image: Image.Image, encoded: bytes) -> None:
    """Raises `DecodeError` for truncated bytes: by the end marker in JPEG and PNG, by decoding in rarer formats.

    Pillow refuses a JPEG without its end marker too, other decoders fill in grey. A cut WebP does not even open.
    """
    if image.format in ("JPEG", "MPO"):
        if not encoded.endswith(b"\xff\xd9") and encoded.find(b"\xff\xd9", _jpeg_scan(encoded)) < 0:
            raise DecodeError("truncated JPEG (no end-of-image marker)")
    elif image.format == "PNG":
        if encoded.rfind(b"IEND") < 0:
            raise DecodeError("truncated PNG (no end chunk)")
    elif image.format != "WEBP":
        try:
            image.load()
        except Exception as fault:
            raise DecodeError(f"undecodable pixels ({fault})") from None


def image_size(data) -> tuple[int, int]:
    """(height, width) of the upright image; JPEG, PNG and WebP are not decoded. Truncated bytes count as no image.

    Raises `DecodeError`.
    """
    if (header := jpeg_header(data)) is not None:
        _check_size(header.width, header.height, len(data))
        return header.height, header.width
    encoded = bytes(data)
    image = _open(encoded)
    _check_complete(image, encoded)
    width, height = image.size  # of a TIFF, Pillow has turned the decoded pixels already, and forgotten the tag
    if image.format == "PNG" and b"eXIf" not in encoded:  # Pillow decodes all of a PNG to look for EXIF at its end
        return height, width
    try:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        turned = False
    return (width, height) if turned else (height, width)


def decode(data) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises `DecodeError`."""
    image = _open(data)
    try:
        image.seek(0)
        image.load()
    except Exception as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # as in image_size: pixels count, metadata does not
        pass
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))
