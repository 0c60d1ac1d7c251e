"""Samples of any type -> 256 levels, or 65,536. They mean what the format declares; what it cannot say is refused.

PNM says its largest value, TIFF and PNG the type of their integers; floating point runs from 0 to 1. `rules.range`
names other ends. Whole ranges that are wider keep their upper bits, as Pillow does with 16-bit colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .rules import Range

_SLAB = 1 << 20  # samples that are worked on at a time: what lies between has 8 bytes each
_PERCENTILES, _ASKED = (1, 99), 1 << 22  # of so many samples at most, evenly spread
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # tags of TIFF
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


class RangeError(ValueError):
    """These samples have no meaning that is known; the message says why and what to do."""


@dataclass(frozen=True)
class Samples:
    """`values` (H, W) or (H, W, C), of which `low` is black and `high` is white by the format's own word."""

    values: np.ndarray
    low: float
    high: float
    inverted: bool = False  # low is white

    def used(self) -> tuple[float, float]:
        return float(self.values.min()), float(self.values.max())

    def as_bytes(self, wanted: Range) -> np.ndarray:
        """uint8 of the same shape. Raises `RangeError`."""
        return self._scaled(self.values.reshape(-1), wanted, np.uint8).reshape(self.values.shape)

    def as_levels(self, wanted: Range) -> np.ndarray:
        """(H, W, C) uint16, whose memory is that of (C, H, W); percentiles are those of each channel.

        Sixteen whole bits stay as they are, to the last. Raises `RangeError`.
        """
        values = self.values if self.values.ndim == 3 else self.values[..., None]
        planes = np.empty((values.shape[2], *values.shape[:2]), np.uint16)
        for number, plane in enumerate(planes):
            channel = np.ascontiguousarray(values[..., number]).reshape(-1)
            plane[:] = self._scaled(channel, wanted, np.uint16).reshape(plane.shape)
        return planes.transpose(1, 2, 0)

    def _scaled(self, flat: np.ndarray, wanted: Range, kind: type[np.uint8] | type[np.uint16]) -> np.ndarray:
        out, white = np.empty(flat.size, kind), np.iinfo(kind).max
        whole, rounding = self.values.dtype.kind in "iu", 0.5 / white  # by which floating point may leave 0..1
        low, high = self._ends(flat, wanted)
        shift = int(self.high - self.low + 1).bit_length() - 1 - np.iinfo(kind).bits if whole else -1
        upper = wanted == "full" and shift >= 0 and self.high - self.low + 1 == (white + 1) << shift
        for start in range(0, len(flat), _SLAB):
            part = flat[start : start + _SLAB]
            if upper:
                out[start : start + _SLAB] = (part.astype(np.int64) - int(self.low)) >> shift
                continue
            part = part.astype(np.float64)
            if not np.isfinite(part).all():
                raise RangeError("floating point that is not finite")
            if wanted == "full" and (part.min() < low - rounding or part.max() > high + rounding):
                ends = f"{part.min():g} to {part.max():g}"
                raise RangeError(f"values from {ends}, beyond {low:g}..{high:g}; say what they mean with data.range")
            scaled = (part - low) * (white / (high - low)) if high > low else np.zeros_like(part)
            out[start : start + _SLAB] = np.clip(scaled + 0.5, 0, white)
        if self.inverted:
            np.subtract(white, out, out=out)
        return out

    def _ends(self, flat: np.ndarray, wanted: Range) -> tuple[float, float]:
        if wanted == "full":
            return self.low, self.high
        if wanted == "percentile":
            return tuple(np.percentile(flat[:: -(-len(flat) // _ASKED)], _PERCENTILES).tolist())
        return wanted


def declared(image: Image.Image) -> tuple[float, float, bool] | None:
    """(low, high, inverted) of the samples of an image that Pillow has opened; None where they have eight bits.

    Raises `RangeError` where the format does not say.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = tags.get(_BITS, (1,))[0], tags.get(_FORMAT, (_UNSIGNED,))[0]
        inverted = tags.get(_PHOTOMETRIC) == 0
        if kind == _FLOAT:
            return 0.0, 1.0, inverted
        half = 1 << bits - 1
        return (-half, half - 1, inverted) if kind == _SIGNED else (0, 2 * half - 1, inverted)
    if image.mode == "F":
        return 0.0, 1.0, False
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of these two, sixteen bits in a wider type
        raise RangeError("integers of 32 bits, whose range the format does not say; write them as 16 bits")
    return 0, 65535, False


def opened(image: Image.Image, ends: tuple[float, float, bool]) -> Samples:
    """The samples of an image whose pixels Pillow has loaded, and perhaps turned."""
    values = np.asarray(image)
    if ends[1] >= 1 << 31:  # unsigned, in Pillow's signed mode
        values = values.view(np.uint32)
    return Samples(values, *ends)


def pnm(image: Image.Image, encoded: bytes) -> Samples | None:
    """The samples of a binary PGM or PPM that Pillow has opened, in their own numbers; None for other kinds of PNM.

    Pillow scales each in an interpreted loop, a second for a million. Raises `RangeError` for too few bytes.
    """
    name, _, offset, arguments = image.tile[0]
    if name == "raw" and image.mode == "I":
        largest = 65535
    elif name == "ppm" and image.mode in ("L", "I", "RGB"):
        largest = arguments[1]
    else:
        return None
    shape = (image.height, image.width) + ((3,) if image.mode == "RGB" else ())
    kind, count = np.dtype(">u2" if largest > 255 else "u1"), int(np.prod(shape))
    if len(encoded) - offset < count * kind.itemsize:
        raise RangeError("truncated")
    values = np.frombuffer(encoded, kind, count, offset).reshape(shape)
    if values.size and values.max() > largest:
        raise RangeError(f"a value of {values.max()}, where the header says {largest} at the most")
    return Samples(values, 0, largest)
