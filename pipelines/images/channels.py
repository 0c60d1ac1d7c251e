"""Encoded bytes -> images of a given number of channels at sixteen bits, where `rules().channels` asks for them.

What any format of `formats.py` holds, NumPy's arrays, and through `instruments.py` what Pillow has no words for: TIFF
of any depth and number of channels, 16-bit colour, DICOM. An image of another number of channels is a bad one: nothing
is repeated or left out but an alpha channel that nobody asked for.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ImageOps

from . import deep
from .budget import reserve
from .decode import DecodeError, check_complete, check_size, load, open_image, upright_size
from .deep import Samples
from .rules import rules

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of 32 bits and of 64
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_GRAY = ("1", "L", "LA", "La")


def decode_channels(data) -> np.ndarray:
    """(H, W, C) uint16, upright, whose memory is that of (C, H, W); C is `rules().channels`.

    0 is black and 65535 white by `rules().range`; sixteen bits whose range is full stay as they are. Raises
    `DecodeError`, and `UserError` where it takes a package that is not installed.
    """
    height, width = channels_size(data)
    with reserve(height * width * rules().channels):
        return _levels(read_channels(data))


def read_channels(data) -> Samples:
    """The samples of an image, upright, in the file's own numbers. Raises as `decode_channels` does."""
    encoded, wanted = bytes(data), rules().channels
    try:
        samples = _samples(encoded, wanted)
    except deep.RangeError as fault:
        raise DecodeError(str(fault)) from None
    held = samples.values.shape[2] if samples.values.ndim == 3 else 1
    if held != wanted:
        raise DecodeError(f"{held} channel{'s' * (held != 1)}, not the {wanted} of data.channels")
    return samples


def _levels(samples: Samples) -> np.ndarray:
    try:
        return samples.as_levels(rules().range)
    except deep.RangeError as fault:
        raise DecodeError(str(fault)) from None


def levels_of(array: np.ndarray) -> np.ndarray:
    """What `decode_channels` gives, of an array as `samples_of` takes it. Raises `DecodeError`."""
    return _levels(samples_of(array, rules().channels))


def channels_size(data) -> tuple[int, int]:
    """(height, width) of the upright image. Raises `DecodeError`, and `UserError` as `decode_channels` does."""
    encoded = bytes(data)
    if encoded.startswith(NPY):
        height, width = _laid(_npy(encoded), rules().channels).shape[:2]
        check_size(width, height)
        return height, width
    if (reader := _instrument(encoded)) is not None:
        height, width = reader[0](encoded)
        check_size(width, height)
        return height, width
    image = open_image(encoded)
    with reserve(image.width * image.height):
        check_complete(image, encoded)
        return upright_size(image, encoded)


def samples_of(array: np.ndarray, channels: int) -> Samples:
    """An array (H, W), (H, W, C) or (C, H, W) by the range of its type: integers whole, floating point from 0 to 1.

    Raises `DecodeError` for other shapes and types.
    """
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    if array.dtype.kind == "f":
        return Samples(_laid(array, channels), 0.0, 1.0)
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        raise DecodeError(f"an array of {array.dtype}; samples are integers of up to 32 bits, or floating point")
    limits = np.iinfo(array.dtype)
    return Samples(_laid(array, channels), limits.min, limits.max)


def as_picture(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint16 for people's eyes, (H, W, 3) uint8: its first three channels, or the first as gray."""
    shown = (pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]) >> 8
    return np.ascontiguousarray(np.broadcast_to(shown, (*pixels.shape[:2], 3)), np.uint8)


def _samples(encoded: bytes, wanted: int) -> Samples:
    if encoded.startswith(NPY):
        return samples_of(_npy(encoded), wanted)
    if (reader := _instrument(encoded)) is not None:
        return reader[1](encoded, wanted)
    return pictured(encoded, wanted)


def _instrument(encoded: bytes):
    """What reads sizes, and what reads samples, of files that are not for Pillow; None for all others."""
    colour = encoded.startswith(b"\x89PNG") and encoded[24:25] == b"\x10" and encoded[25:26] in b"\2\4\6"
    jpeg2000 = encoded[4:8] == b"jP  " or encoded.startswith(b"\xff\x4f\xff\x51")
    if not (colour or jpeg2000 or encoded.startswith(_TIFF) or encoded[128:132] == b"DICM"):
        return None
    from . import instruments

    if encoded.startswith(_TIFF):
        return instruments.tiff_size, instruments.tiff
    if encoded[128:132] == b"DICM":
        return instruments.dicom_size, instruments.dicom
    return instruments.pillow_size, instruments.png if colour else instruments.jpeg2000


def pictured(encoded: bytes, wanted: int) -> Samples:
    """What Pillow makes of any picture of its own: gray or colour of eight bits, gray of more.

    Raises `DecodeError`.
    """
    image = open_image(encoded)
    if (samples := load(image, encoded)) is not None:
        return samples
    ends = deep.declared(image)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # pixels count, metadata does not
        pass
    if ends is not None:
        return deep.opened(image, ends)
    image.info.pop("transparency", None)
    colour = "L" if image.mode in _GRAY else "RGB"
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") and wanted == len(colour) + 1
    kind = f"{colour}A" if alpha else colour
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    try:
        return Samples(np.array((image.convert(straight) if straight else image).convert(kind)), 0, 255)
    except ValueError as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None


def _npy(encoded: bytes) -> np.ndarray:
    """The array of an .npy file, without a copy."""
    file = io.BytesIO(encoded)
    try:
        shape, by_columns, kind = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as fault:  # of a header as anybody may have written it
        raise DecodeError(f"an array whose header cannot be read ({str(fault) or type(fault).__name__})") from None
    count, start = int(np.prod(shape, dtype=object)), file.tell()
    if kind.hasobject or not 0 < count * kind.itemsize <= len(encoded) - start:
        held = f"of shape {shape} and {kind}, {len(encoded) - start:,} bytes"
        raise DecodeError(f"an array that is empty, cut off, or of Python's objects ({held})")
    return np.frombuffer(encoded, kind, count, start).reshape(shape, order="F" if by_columns else "C")


def _laid(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) of an array whose channels are its last axis or else its first; (H, W) has one."""
    if array.ndim == 2 and channels == 1:
        return array[..., None]
    if array.ndim == 3 and array.shape[2] != channels and array.shape[0] == channels:
        return array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == channels:
        return array
    raise DecodeError(f"an array of shape {array.shape}, neither (H, W, {channels}) nor ({channels}, H, W)")
