"""What microscopes, satellites and scanners write, where `rules().channels` is set.

TIFF through tifffile, 16-bit colour and JPEG 2000 through imagecodecs (the extra [rasters]), DICOM through pydicom (the
extra [dicom]).
"""

from __future__ import annotations

import importlib
import io
import logging

import numpy as np

from ...errors import UserError
from .channels import pictured
from .decode import DecodeError, check_complete, open_image, upright_size
from .deep import Samples
from .jpeg import ORIENTATION

_INVERTED, _PICTURES = 0, (3, 5, 6, 8, 9, 10)  # photometric: 0 is white; palettes, CMYK, YCbCr and Lab are Pillow's
_BITS, _FORMAT, _UNSIGNED, _SIGNED, _FLOAT = 258, 339, 1, 2, 3
_GRAYS = ("MONOCHROME1", "MONOCHROME2")


def _package(name: str, extra: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = f'pip install "headrace[{extra}]"'
        raise UserError(f"data.channels: reading this takes {name}, of the extra [{extra}]: {hint}") from None


# ---- TIFF


def tiff_size(encoded: bytes) -> tuple[int, int]:
    with _opened(encoded) as file:
        page = _pages(file, encoded)[0]
        return (page.imagewidth, page.imagelength) if _orientation(page) > 4 else (page.imagelength, page.imagewidth)


def tiff(encoded: bytes, wanted: int) -> Samples:
    """The channels of the first page, or as many pages of one channel each.

    Of an alpha channel that nobody asked for nothing is read. What is meant for eyes (palettes, CMYK, YCbCr) is RGB, as
    Pillow has it.
    """
    with _opened(encoded) as file:
        pages = _pages(file, encoded)
        first = pages[0]
        if first.photometric in _PICTURES:
            return pictured(encoded, wanted)
        alike = {(p.shape, p.dtype, p.samplesperpixel, p.photometric) for p in pages}
        joined = first.samplesperpixel == 1 != wanted and len(pages) == wanted and len(alike) == 1
        try:
            values = np.stack([p.asarray() for p in pages], -1) if joined else first.asarray()
        except Exception as fault:  # a decoder of its own for each compression, which raise almost anything
            raise DecodeError(f"undecodable pixels ({fault})") from None
        if not joined and first.axes == "SYX":
            values = np.moveaxis(values, 0, -1)
        if values.ndim != 2 + (joined or first.samplesperpixel > 1):
            raise DecodeError(f"a page of shape {first.shape}, axes {first.axes}")
        colours = first.samplesperpixel - len(first.extrasamples)
        if not joined and wanted == colours < first.samplesperpixel and first.extrasamples[-1] in (1, 2):
            values = values[..., :colours]
        return Samples(_upright(values, _orientation(first)), *_ends(first), first.photometric == _INVERTED)


def _opened(encoded: bytes):
    tifffile = _package("tifffile", "rasters")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by us
    try:
        return tifffile.TiffFile(io.BytesIO(encoded))
    except Exception as fault:
        raise DecodeError(f"unreadable header ({fault})") from None


def _pages(file, encoded: bytes) -> list:
    """Pages at full size. Raises `DecodeError` where one is cut off, which tifffile may fill with zeros."""
    try:
        pages = [page for page in map(file.pages.get, range(len(file.pages))) if not (page.is_reduced or page.is_mask)]
        ends = [at + size for page in pages for at, size in zip(page.dataoffsets, page.databytecounts)]
        holes = [size for page in pages for size in page.databytecounts if not size]
        sizes = [page.imagelength * page.imagewidth for page in pages]
    except Exception as fault:
        raise DecodeError(f"unreadable header ({fault})") from None
    if not pages or not ends or not all(sizes):
        raise DecodeError("a TIFF without an image")
    if holes or max(ends) > len(encoded):
        raise DecodeError("truncated TIFF")
    return pages


def _orientation(page) -> int:
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Samples (H, W, ...) as EXIF's and TIFF's number says they are meant."""
    if orientation > 4:
        values = values.swapaxes(0, 1)
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return values[:: -1 if down else 1, :: -1 if across else 1]


def _ends(page) -> tuple[float, float]:
    """Black and white by the type of a page's samples."""
    bits, kind = int(page.bitspersample), int(page.sampleformat)
    if kind == _FLOAT:
        return 0.0, 1.0
    if kind not in (_UNSIGNED, _SIGNED) or bits > 32:
        raise DecodeError(f"samples of {page.dtype}; integers of up to 32 bits, and floating point, are read")
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind == _SIGNED else (0, (1 << bits) - 1)


# ---- 16-bit colour, JPEG 2000


def pillow_size(encoded: bytes) -> tuple[int, int]:
    """Of what Pillow opens, and another library decodes."""
    image = open_image(encoded)
    check_complete(image, encoded)
    return upright_size(image, encoded)


def png(encoded: bytes, wanted: int) -> Samples:
    return _decoded(encoded, wanted, "png_decode", 65535)


def jpeg2000(encoded: bytes, wanted: int) -> Samples:
    """As many bits as the code stream's own header says."""
    depth = encoded[encoded.find(b"\xff\x4f\xff\x51") + 42] if b"\xff\x4f\xff\x51" in encoded else 0x80
    if depth & 0x80:
        raise DecodeError("JPEG 2000 of signed samples, or without a header of its size")
    return _decoded(encoded, wanted, "jpeg2k_decode", (2 << depth) - 1)


def _decoded(encoded: bytes, wanted: int, decoder: str, high: int) -> Samples:
    codecs = _package("imagecodecs", "rasters")
    try:
        values = getattr(codecs, decoder)(encoded)
    except Exception as fault:
        raise DecodeError(f"undecodable pixels ({fault})") from None
    if values.ndim == 3 and values.shape[2] in (2, 4) and wanted == values.shape[2] - 1:
        values = values[..., :wanted]  # an alpha channel that nobody asked for
    image = open_image(encoded)
    turned = image.getexif().get(ORIENTATION, 1) if image.format != "PNG" or b"eXIf" in encoded else 1
    return Samples(_upright(values, turned), 0, high)


# ---- DICOM


def dicom_size(encoded: bytes) -> tuple[int, int]:
    found = _dicom(encoded, header=True)
    return int(found.Rows), int(found.Columns)


def dicom(encoded: bytes, wanted: int) -> Samples:
    """Stored values through the modality's own slope and intercept, as a CT's in Hounsfield units; frames are channels
    where there are as many."""
    found = _dicom(encoded)
    try:
        values = found.pixel_array
        bits, signed = int(found.BitsStored), int(found.PixelRepresentation) == 1
        slope, intercept = (
            float(found.get(key, value)) for key, value in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    except Exception as fault:
        raise DecodeError(f"undecodable pixels ({' '.join(str(fault).split())})") from None
    if found.PhotometricInterpretation not in (*_GRAYS, "RGB") or "ModalityLUTSequence" in found:
        raise DecodeError(f"DICOM of kind {found.PhotometricInterpretation}, or by a table; gray and RGB are read")
    if values.ndim == 3 and int(found.get("NumberOfFrames", 1)) > 1:
        values = np.moveaxis(values, 0, -1)
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if (slope, intercept) != (1, 0):
        whole = slope.is_integer() and intercept.is_integer()
        values = values.astype(np.int64 if whole else np.float64)
        slope, intercept = (int(slope), int(intercept)) if whole else (slope, intercept)
        values, ends = values * slope + intercept, sorted(end * slope + intercept for end in ends)
    return Samples(values, *ends, found.PhotometricInterpretation == "MONOCHROME1")


def _dicom(encoded: bytes, header: bool = False):
    pydicom = _package("pydicom", "dicom")
    try:
        found = pydicom.dcmread(io.BytesIO(encoded), stop_before_pixels=header)
        _ = int(found.Rows), int(found.Columns), found.PhotometricInterpretation
    except Exception as fault:
        raise DecodeError(f"unreadable DICOM ({' '.join(str(fault).split())})") from None
    return found
