"""FFCV's files: every image as JPEG or as raw pixels, read without FFCV. The format is its version 2."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import UserError
from .lists import HIGHEST_LABEL
from .mapped import INDEX, MappedSource
from .png import encode_png

VERSION = 2
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
_FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_ALLOCATION = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])
_INT, _IMAGE = 1, 2
_IMAGE_ROW = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("offset", "<u8")])
_BYTES_ROW = np.dtype([("offset", "<u8"), ("size", "<u8")])
_ROWS = {0: "<f8", _INT: "<i8", _IMAGE: _IMAGE_ROW, 3: _BYTES_ROW, 4: "<u8", 5: _BYTES_ROW, 6: "<u8"}
_RAW = 1  # the other mode, 0, is JPEG


class BetonSource(MappedSource):
    """The images of a ``.beton`` in its order: its first image field, labelled by its first integer field.

    Raises `UserError` for a damaged file, one of another version, and one with fields of its writer's own.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        file = Path(path)
        try:
            rows, allocated, end = _read(file)
        except (OSError, ValueError) as fault:
            raise UserError(f"{file}: cannot be read as FFCV's format ({fault}); copy it again") from None
        images = next((rows[name] for name in rows.dtype.names if rows[name].dtype == _IMAGE_ROW), None)
        if images is None or not len(images):
            raise UserError(f"{file}: no image in it; write an RGBImageField")
        self._raw = images["mode"] == _RAW
        index = np.zeros(len(images), INDEX)
        index["offset"], index["size"] = images["offset"], _sizes(file, images, allocated, end)
        index["height"], index["width"] = images["height"], images["width"]
        index["label"], classes = _labels(file, rows)
        super().__init__(str(file), [file], [end], index, classes, "none" if classes is None else "annotations")

    def read(self, index: int) -> np.ndarray:
        """The bytes of the JPEG, a view of the map; raw pixels as PNG."""
        pixels = self.pixels(index)
        return super().read(index) if pixels is None else encode_png(pixels)

    def pixels(self, index: int) -> np.ndarray | None:
        """(H, W, 3) uint8 of raw pixels, a view of the map; None for a JPEG."""
        return super().read(index).reshape(*self.size(index), 3) if self._raw[index] else None

    def key(self, index: int) -> str:
        return f"{self._files[0].name}/{index:08d}.{'png' if self._raw[index] else 'jpg'}"


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """A row per sample with a column per field, the table of allocations, the file's size. `ValueError` on damage."""
    end = file.stat().st_size
    header = np.fromfile(file, _HEADER, 1)
    if len(header) != 1 or header[0]["version"] != VERSION:
        raise ValueError(f"no header of version {VERSION}")
    _, fields, _, samples, table = header[0].item()
    kinds = np.fromfile(file, _FIELD, fields, offset=_HEADER.itemsize)["kind"].tolist()
    if len(kinds) != fields or not set(kinds) <= set(_ROWS):
        raise ValueError("fields that are not FFCV's own" if len(kinds) == fields else "cut short")
    row = np.dtype([("", _ROWS[kind]) for kind in kinds], align=True)
    start = _HEADER.itemsize + fields * _FIELD.itemsize
    if not start + samples * row.itemsize <= table <= end:
        raise ValueError("cut short")
    return np.fromfile(file, row, samples, offset=start), np.fromfile(file, _ALLOCATION, offset=table), end


def _sizes(file: Path, images: np.ndarray, allocated: np.ndarray, end: int) -> np.ndarray:
    """Bytes of every image, by the table of allocations. Raises `UserError` where that does not fit."""
    allocated = allocated[np.argsort(allocated["offset"])]
    at = np.searchsorted(allocated["offset"], images["offset"])
    if (at == len(allocated)).any() or (allocated["offset"][at] != images["offset"]).any():
        raise UserError(f"{file}: images that its table does not know; it was not written to the end, write it again")
    sizes = allocated["size"][at]
    pixels = 3 * images["height"].astype(np.uint64) * images["width"]
    beyond = (sizes > min(end, 2**32 - 1)) | (images["offset"] > end - np.minimum(sizes, end))
    if beyond.any() or (sizes != pixels)[images["mode"] == _RAW].any():
        raise UserError(f"{file}: images that reach past its end, or of another size than they say; copy it again")
    return sizes


def _labels(file: Path, rows: np.ndarray) -> tuple[np.ndarray | int, list[str] | None]:
    """Labels and the names of the classes, -1 and None where there is no integer field."""
    labels = next((rows[name] for name in rows.dtype.names if rows[name].dtype == "<i8"), None)
    if labels is None:
        return -1, None
    if labels.min() < 0 or labels.max() > HIGHEST_LABEL:
        raise UserError(f"{file}: labels {labels.min()} to {labels.max()}, not from 0 to at most {HIGHEST_LABEL}")
    return labels, [str(label) for label in range(int(labels.max()) + 1)]
