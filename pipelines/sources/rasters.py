"""Windows of large TIFFs as samples: (file, level of its pyramid, y, x). No tile is written; which count, a mask says.

Needs tifffile, and imagecodecs for compressed ones. A window is decoded from the tiles or strips that it touches, and
handed out as an uncompressed PNG, so that order, resume and quarantine are those of all sources.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.decode import DecodeError, decode
from .mapped import allow_open_files
from .png import encode_png

SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff")
_COARSE = 16  # pixels of a window's side that suffice to tell how much of it is valid
_WHITE_IS_ZERO, _COLOURS, _YCBCR_IN_JPEG = 0, (0, 1, 2), (6, 7)  # values of tags
_ROW = np.dtype([("file", "<u4"), ("y", "<u4"), ("x", "<u4")])


class RasterSource:
    """The windows of `size` pixels a side, every `step` pixels (default: `size`), of the TIFFs in a folder or of one.

    `level`: of the pyramid, 0 is the finest; positions count in its pixels. A window is a sample if at least the share
    `valid` of it is: by ``<mask>/<stem>.png``, of any resolution, what is not black; or what is not of the value
    `nodata` in all channels, looked at in a coarse level where there is one. Files by path, windows by row and column;
    a file's are neighbours. 8 bits, of 1, 3 or 4 channels (the fourth is dropped). Raises `UserError`.
    """

    classes, label_source = None, "none"

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        size: str = "512",
        step: str = "",
        level: str = "0",
        valid: str = "0.5",
        mask: str = "",
        nodata: str = "",
    ) -> None:
        try:
            import tifffile  # noqa: F401 (an extra of the package)
        except ImportError:
            raise UserError(f"{path}: needs the extra [rasters]: pip install 'headrace[rasters]'") from None
        self.name, root = str(path), Path(path)
        self._size, self._level = _whole(path, "size", size, 1), _whole(path, "level", level, 0)
        every, share = _whole(path, "step", step or size, 1), _share(path, valid)
        ground = None if not nodata else _whole(path, "nodata", nodata, 0)
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if _is_raster(file, root))
        if not files:
            raise UserError(f"{path}: no raster in it; give a folder of files that end in {' '.join(SUFFIXES)}, or one")
        self._root, self._files = (root.parent if root.is_file() else root), files
        self._make()
        rows, skipped = [], 0
        for number, file in enumerate(files):
            page = self._page(number)
            height, width = page.imagelength, page.imagewidth
            y, x = (range(0, side - self._size + 1, every) for side in (height, width))
            part = np.zeros(len(y) * len(x), _ROW)
            part["file"] = number
            part["y"], part["x"] = np.repeat(y, len(x)), np.tile(x, len(y))
            covered = _mask_of(file, Path(mask)) if mask else None if ground is None else self._ground(number, ground)
            if covered is not None:
                kept = _shares(covered, part, self._size, height, width) >= share
                part, skipped = part[kept], skipped + int((~kept).sum())
            rows.append(part)
        self.index = np.concatenate(rows)
        if not len(self.index):
            why = (
                f"{skipped:,} windows have too few valid pixels" if skipped else f"all are smaller than {self._size} px"
            )
            raise UserError(f"{path}: no window in its {len(files)} rasters: {why}; try another size or valid=")
        self.notes = [f"passed over: {skipped:,} windows of which less than {share:g} is valid"] if skipped else []

    def _make(self) -> None:
        self._pages: dict[int, object] = {}
        self._lock = threading.Lock()
        allow_open_files(len(self._files))

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pages", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make()

    def __len__(self) -> int:
        return len(self.index)

    def _levels(self, number: int) -> Sequence:
        from tifffile import TiffFile

        return [one.pages[0] for one in TiffFile(self._files[number]).series[0].levels]

    def _page(self, number: int):
        """The level of a file that windows are taken from. Raises `UserError` for what is no raster of 8 bits."""
        with self._lock:
            if number in self._pages:
                return self._pages[number]
            file, fault = self._files[number], ""
            try:
                levels = self._levels(number)
                page = levels[min(self._level, len(levels) - 1)]
                if self._level >= len(levels):
                    fault = f"it has {len(levels)} levels, no level {self._level}"
                elif page.dtype != np.uint8 or page.samplesperpixel not in (1, 3, 4) or page.imagedepth != 1:
                    fault = f"{page.samplesperpixel} channels of {page.dtype}, where 1, 3 or 4 of uint8 are read"
                elif page.photometric not in _COLOURS and (page.photometric, page.compression) != _YCBCR_IN_JPEG:
                    fault = f"its colours are {page.photometric.name}, where gray and RGB are read"
            except Exception as problem:  # tifffile's errors are of many kinds
                fault = str(problem) or type(problem).__name__
            if fault:
                raise UserError(f"{file}: cannot be read as a raster: {fault}; leave it out, or convert it")
            self._pages[number] = page
            return page

    def _ground(self, number: int, value: int) -> np.ndarray:
        """(h, w) bool of the coarsest level that suffices: what is of another value in some channel."""
        fine = self._page(number)
        levels = self._levels(number)[self._level :]
        enough = [p for p in levels if self._size * p.imagelength >= _COARSE * fine.imagelength]
        page = enough[-1] if enough else fine
        pixels = _window(page, 0, 0, page.imagelength, page.imagewidth)
        return (pixels != value).any(2)

    def pixels(self, index: int) -> np.ndarray:
        """(size, size, 3) uint8. Raises `OSError` for what cannot be read or decoded."""
        number, y, x = self.index[index].item()
        try:
            return _window(self._page(number), y, x, self._size, self._size)
        except Exception as fault:  # decoders raise what they like
            raise OSError(f"{self.key(index)}: {fault or type(fault).__name__}") from None

    def read(self, index: int) -> np.ndarray:
        """The window as PNG, 1-D uint8."""
        return encode_png(self.pixels(index))

    def label(self, index: int) -> int:
        return -1

    def key(self, index: int) -> str:
        """``file/level/y/x``."""
        file, offset = self.place(index)
        return f"{file}/{self._level}/{self.index['y'][index]}/{self.index['x'][index]}"

    def place(self, index: int) -> tuple[str, int]:
        """(file, number of the window in it)."""
        first, _ = self.neighbours(index)
        return self._files[int(self.index["file"][index])].relative_to(self._root).as_posix(), index - first

    def neighbours(self, index: int) -> tuple[int, int]:
        """(first, last): the windows [first, last) are of one file."""
        files = self.index["file"]
        return tuple(int(np.searchsorted(files, files[index], side)) for side in ("left", "right"))

    def size(self, index: int) -> tuple[int, int]:
        return self._size, self._size


def _window(page, y: int, x: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 of a page, from the tiles or strips that it touches; what a sparse file lacks is 0."""
    out = np.zeros((height, width, page.samplesperpixel), np.uint8)
    for number in _touched(page, y, x, height, width):
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        if not count:
            continue
        data = os.pread(page.parent.filehandle.fileno(), count, offset)
        if len(data) != count:
            raise OSError("the file is cut short")
        tile, (plane, _, top, left, _), _ = page.decode(
            data, number, jpegtables=page.jpegtables, jpegheader=page.jpegheader
        )
        tile = tile[0]
        rows = slice(max(top, y), min(top + tile.shape[0], y + height))
        columns = slice(max(left, x), min(left + tile.shape[1], x + width))
        if rows.start < rows.stop and columns.start < columns.stop:
            part = tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            planes = slice(plane, plane + part.shape[2])
            out[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x, planes] = part
    if page.photometric == _WHITE_IS_ZERO:
        out = 255 - out
    return np.repeat(out, 3, axis=2) if out.shape[2] == 1 else out[..., :3]


def _touched(page, y: int, x: int, height: int, width: int) -> Iterator[int]:
    """The numbers of the tiles or strips of a page that a window touches, in all planes."""
    tall = page.tilelength or page.rowsperstrip
    wide = page.tilewidth or page.imagewidth
    down, across = -(-page.imagelength // tall), -(-page.imagewidth // wide)
    planes = len(page.dataoffsets) // (down * across)
    for plane in range(planes):
        for row in range(y // tall, min(-(-(y + height) // tall), down)):
            for column in range(x // wide, min(-(-(x + width) // wide), across)):
                yield (plane * down + row) * across + column


def _mask_of(file: Path, folder: Path) -> np.ndarray:
    """(h, w) bool of the mask that belongs to a raster. Raises `UserError`."""
    mask = folder.expanduser() / f"{file.stem}.png"
    try:
        return decode(mask.read_bytes()).any(2)
    except (OSError, DecodeError) as fault:
        raise UserError(f"{mask}: no mask for {file.name} ({fault}); draw it, or leave mask= out") from None


def _shares(covered: np.ndarray, rows: np.ndarray, size: int, height: int, width: int) -> np.ndarray:
    """Of each window, which share is valid by a mask of its own resolution."""
    sums = np.zeros((covered.shape[0] + 1, covered.shape[1] + 1), np.int64)
    sums[1:, 1:] = covered.cumsum(0).cumsum(1)
    top, bottom = _edges(rows["y"], size, covered.shape[0] / height)
    left, right = _edges(rows["x"], size, covered.shape[1] / width)
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / ((bottom - top) * (right - left))


def _edges(starts: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    first = np.floor(starts * scale).astype(int)
    return first, np.maximum(np.round((starts.astype(np.int64) + size) * scale).astype(int), first + 1)


def _is_raster(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


def _whole(path, what: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{path}: {what}={text}: a whole number from {least} on")
    return int(text)


def _share(path, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{path}: valid={text}: a share of a window's pixels, from 0 to 1")
    return share
