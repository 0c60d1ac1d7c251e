"""Encoded bytes -> upright RGB pixels: the definition that every loader follows. Of deep images, see `channels.py`.

Any format of `formats.py`, by its bytes; the first frame of animations; EXIF orientation applied; alpha composited on
nothing (its channel is dropped); grayscale repeated three times; more than eight bits as `deep.py` says. A truncated
file is an error, never a half-grey picture. Memory is reserved by the header's size before it is taken.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from . import deep, jpegxl
from .budget import reserve
from .formats import HEIF, JPEG_XL
from .jpeg import ORIENTATION, arithmetic, jpeg_header
from .rules import rules

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # to `check_size` that is an error
Image.MAX_IMAGE_PIXELS = None  # `check_size` asks `rules`; Pillow would stop at twice its own number all the same
# Profiles of printers and notes of editors are longer than Pillow's 1 MB; all of an image's notes together are bounded.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
_KINDS = "JPEG MPO PNG WEBP AVIF HEIF GIF BMP DIB TIFF JPEG2000 JXL PPM TGA SGI PCX QOI SUN DDS ICO".split()
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # alpha multiplied into the colours -> not


class DecodeError(ValueError):
    """These bytes are not a complete image; the message says why."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of what is read. It knows others, some of which start programs."""
    Image.init()
    with contextlib.suppress(ImportError):  # an extra; a thread for each image, as with all others
        plug_in = importlib.import_module(HEIF)
        plug_in.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    if importlib.util.find_spec(JPEG_XL) is not None:
        jpegxl.register()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)


def begins_as_image(head: bytes) -> bool:
    """Whether 16 bytes or more are the beginning of an image file; of formats without a mark, such as TGA, never."""
    marks = (Image.OPEN[kind][1] for kind in _formats() if kind != "DIB")  # which begins as many numbers do
    return len(head) >= 16 and any(mark is not None and mark(head) is True for mark in marks)


class TooManyPixels(DecodeError):
    """More than `rules().max_pixels`."""


def open_image(encoded: bytes, most: int | None = None) -> Image.Image:
    """The header of an image of at most `most` pixels, by default `rules().max_pixels`. Raises `DecodeError`."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
    except UnidentifiedImageError:
        raise DecodeError("not an image in any known format" if len(encoded) else "empty file") from None
    except Exception as fault:  # Pillow's plug-ins raise almost anything on hostile headers
        raise DecodeError(f"unreadable header ({fault})") from None
    check_size(*image.size, encoded if image.format in ("JPEG", "MPO") else None, most)
    if image.format in ("JPEG", "MPO"):
        image.decodermaxblock = len(encoded)  # libjpeg cannot pause in the midst of arithmetic coding
    return image


def check_size(width: int, height: int, jpeg=None, most: int | None = None) -> None:
    """Raises `DecodeError` for a header that asks for more memory than the image can be worth; `jpeg`: its bytes."""
    most = most or rules().max_pixels
    if width * height > most:
        words = f"more than the {most:,} that data.max_pixels, or --max-pixels, allows"
        raise TooManyPixels(f"{width}x{height} pixels, {words}")
    # every 8x8 block takes a Huffman code of at least one bit; arithmetic coding spends less on what it expects
    if jpeg is not None and width * height > 512 * len(jpeg) and not arithmetic(jpeg):
        raise DecodeError(f"too few bytes for a JPEG of {width}x{height} pixels ({len(jpeg):,})")


def _jpeg_scan(encoded: bytes) -> int:
    """Offset of the first start-of-scan marker: the thumbnail inside the EXIF block has end markers of its own."""
    offset = 2
    while offset + 4 <= len(encoded) and encoded[offset + 1] != 0xDA:
        offset += 2 + int.from_bytes(encoded[offset + 2 : offset + 4], "big") if encoded[offset + 1] != 0xFF else 1
    return offset


def check_complete(image: Image.Image, encoded: bytes) -> None:
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
        load(image, encoded)


def load(image: Image.Image, encoded: bytes) -> deep.Samples | None:
    """Decodes in place; of a binary PNM, returns the samples instead. Raises `DecodeError`."""
    try:
        if image.format == "PPM" and (samples := deep.pnm(image, encoded)) is not None:
            return samples
        image.load()
    except Exception as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None
    return None


def image_size(data) -> tuple[int, int]:
    """(height, width) of the upright image; JPEG, PNG and WebP are not decoded. Truncated bytes count as no image.

    Raises `DecodeError`.
    """
    if rules().channels is not None:
        from .channels import channels_size

        return channels_size(data)
    if (header := jpeg_header(data)) is not None:
        check_size(header.width, header.height, data)
        return header.height, header.width
    encoded = bytes(data)
    image = open_image(encoded)
    with reserve(image.width * image.height):
        check_complete(image, encoded)
        return upright_size(image, encoded)


def upright_size(image: Image.Image, encoded: bytes) -> tuple[int, int]:
    width, height = image.size  # of a TIFF, Pillow has turned the decoded pixels already, and forgotten the tag
    if image.format == "PNG" and b"eXIf" not in encoded:  # Pillow decodes all of a PNG to look for EXIF at its end
        return height, width
    try:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        turned = False
    return (width, height) if turned else (height, width)


def decode(data) -> np.ndarray:
    """(H, W, 3) uint8 RGB; of deep images what people may look at. Raises `DecodeError`."""
    if rules().channels is not None:
        from .channels import as_picture, decode_channels

        return as_picture(decode_channels(data))
    encoded = bytes(data)
    image = open_image(encoded)
    with reserve(image.width * image.height):
        samples = read_samples(image, encoded)
        if isinstance(samples, deep.Samples):
            try:
                pixels = samples.as_bytes(rules().range)
            except deep.RangeError as fault:
                raise DecodeError(str(fault)) from None
            return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        return samples


def read_samples(image: Image.Image, encoded: bytes) -> deep.Samples | np.ndarray:
    """The pixels of an opened image, upright: RGB bytes (H, W, 3), or samples of another kind, still as they are.

    Raises `DecodeError`.
    """
    try:
        image.seek(0)
    except Exception as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None
    if (samples := load(image, encoded)) is not None:
        return samples
    try:
        ends = deep.declared(image)
    except deep.RangeError as fault:
        raise DecodeError(str(fault)) from None
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # as in image_size: pixels count, metadata does not
        pass
    if ends is not None:
        return deep.opened(image, ends)
    image.info.pop("transparency", None)  # of which Pillow would warn
    try:
        if image.mode in _STRAIGHT:
            image = image.convert(_STRAIGHT[image.mode])
        return np.array(image.convert("RGB"))
    except ValueError as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None
