"""A source -> the pixels of its samples, as sidecars hold them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, Protocol

import numpy as np

from ...errors import UserError, notice
from ..images.planes import Planes
from ..plan.mixed import MixedSource
from ..sources.mapped import INDEX, MappedSource
from ..sources.shards import ShardSource
from ..sources.subset import Subset
from ..spec import ByteSource
from .layout import Request, Sidecar, bytes_of, read_sidecar, sidecar_of

MODES = ("auto", "never", "require")
_THREADS = 16  # cold disks answer many at once


class Pixels(Protocol):
    """Where decoded images are, as a base class. `words` says so in the block at start-up; `form` is the one of
    `FORMATS` that all of them have, None where they differ or nobody says."""

    words: str
    form: str | None = None

    def image(self, index: int) -> np.ndarray | Planes | None:
        """(H, W, 3) uint8 RGB, (H, W, C) uint16 or `Planes`, read-only; None for a sample that has none, which is for a
        decoder.

        Raises `OSError` for what cannot be read.
        """

    def ask(self, index: int, top: int = 0, bottom: int | None = None) -> None:
        """Says that the rows from `top` to before `bottom` (None: all) of an image will be wanted, so that a cold disk
        reads them while others work. Nothing to do for what is in memory."""

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of that, or None."""


def open_pixels(
    source: ByteSource, mode: Literal["auto", "never", "require"] = "auto", say: Callable[[str], None] = notice
) -> Pixels | None:
    """The sidecars of a source; None with ``never``, and with ``auto`` where there are none, or not for all of it.

    Raises `UserError` for sidecars that are not those of their tars, and with ``require`` where some are missing.
    """
    if mode == "never":
        return None
    found, missing = _open(source)
    if not missing:
        return found
    if mode == "require":
        raise UserError(f"data.pixels: {missing}; write them with `headrace pixels`, or use data.pixels=auto")
    if found is not None:
        say(f"{missing}: its pixels are not used")
    return None


def _open(source: ByteSource) -> tuple[Pixels | None, str]:
    """What there is, and what is missing, in words."""
    if isinstance(source, ShardSource):
        return _of_shards(source)
    if isinstance(source, Subset):
        whole, missing = _open(source.source)
        return whole and _Picked(whole, source.ids), missing
    if isinstance(source, MixedSource):
        parts = [_open(part) for part in source.sources]
        some = next((part for part, _ in parts if part is not None), None)
        if missing := next((words for _, words in parts if words), ""):
            return some, missing
        return _Joined([part for part, _ in parts], source), ""
    return None, f"{source.name}: has no pixels beside it, only shards can have them"


def _of_shards(source: ShardSource) -> tuple[Pixels | None, str]:
    tars = source.tars()
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(read_sidecar, tars))
    there = [one for one in found if one is not None]
    if len(there) < len(tars):
        first = next(tar.path for tar, one in zip(tars, found) if one is None)
        return there and Sidecars(source, there) or None, (
            f"{source.name}: {len(tars) - len(there):,} of {len(tars):,} shards have no pixels beside them, "
            f"{sidecar_of(first).name} among them"
        )
    one = there[0]
    if other := next((other for other in there if other.request != one.request), None):
        raise UserError(
            f"{one.path}: {one.request.words}, but {other.path.name} is {other.request.words}; "
            "make all of them with one `headrace pixels`, or use data.pixels=never"
        )
    return Sidecars(source, there), ""


class Sidecars(MappedSource):
    """The pixels of all shards of a source, at the indices of its samples: memory-mapped, nothing is copied.

    Pickles without its maps.
    """

    # Else one page that was not asked for has the system read all around it: 2.3 MB an image, where crops take 235 kB
    # of 300, with a `read_ahead_kb` of 8192.
    _advice = mmap.MADV_RANDOM

    def __init__(self, source: ShardSource, sidecars: Sequence[Sidecar]) -> None:
        self.request: Request = sidecars[0].request
        self.form = self.request.format
        self.total = sum(one.head["bytes"] for one in sidecars)
        index = np.zeros(sum(len(one.rows) for one in sidecars), INDEX)
        index["shard"] = np.repeat(np.arange(len(sidecars)), [len(one.rows) for one in sidecars])
        for key in ("offset", "height", "width"):
            index[key] = np.concatenate([one.rows[key] for one in sidecars])
        index["size"] = bytes_of(self.request.format, *(index[key].astype(np.int64) for key in ("height", "width")))
        files, sizes = [one.path for one in sidecars], [one.head["bytes"] for one in sidecars]
        super().__init__(f"{source.name}: pixels", files, sizes, index, None, "none")

    @property
    def words(self) -> str:
        return f"{self.request.words}, {self.total / 1e9:,.1f} GB beside the shards"

    def image(self, index: int) -> np.ndarray | Planes | None:
        """See `Pixels`. Nothing is read before it is looked at."""
        shard, offset, size, _, height, width = self.index[index].item()
        if not height:
            return None
        flat = self._map(shard)[offset : offset + size]
        if self.request.format == "deep":
            return flat.view("<u2").reshape(-1, height, width).transpose(1, 2, 0)
        return flat.reshape(height, width, 3) if self.request.format == "rgb" else Planes(flat, height, width)

    def ask(self, index: int, top: int = 0, bottom: int | None = None) -> None:
        """See `Pixels`."""
        shard, offset, size, _, height, width = self.index[index].item()
        if not height:
            return
        with suppress(OSError):  # of a file that has changed, which `image` says
            pages = self._map(shard).base.obj
            for first, last in spans(self.request.format, size, height, width, top, bottom):
                start = (offset + first) // mmap.PAGESIZE * mmap.PAGESIZE
                pages.madvise(mmap.MADV_WILLNEED, start, offset + last - start)


def spans(form: str, size: int, height: int, width: int, top: int, bottom: int | None) -> list[tuple[int, int]]:
    """The bytes of an image that some of its rows are made of: (first, end) of each run, one for each plane; one for
    the image where all of it is wanted (`bottom` None), or it is deep."""
    if form == "deep" or bottom is None:
        return [(0, size)]
    if form == "rgb":
        return [(3 * width * top, 3 * width * bottom)]
    rows, columns, luma = (height + 1) // 2, (width + 1) // 2, height * width
    # one row of chroma more on each side, which what lies between two rows may be made of
    first, end = columns * max(0, top // 2 - 1), columns * min(rows, (bottom + 1) // 2 + 1)
    return [(width * top, width * bottom), *((start + first, start + end) for start in (luma, luma + rows * columns))]


class _Picked(Pixels):
    """Those of a `Subset`."""

    def __init__(self, whole: Pixels, ids: Sequence[int]) -> None:
        self._whole, self._ids, self.words, self.form = whole, ids, whole.words, whole.form

    def image(self, index: int) -> np.ndarray | Planes | None:
        return self._whole.image(int(self._ids[index]))

    def ask(self, index: int, top: int = 0, bottom: int | None = None) -> None:
        self._whole.ask(int(self._ids[index]), top, bottom)

    def size(self, index: int) -> tuple[int, int] | None:
        return self._whole.size(int(self._ids[index]))


class _Joined(Pixels):
    """Those of several sets."""

    def __init__(self, parts: Sequence[Pixels], source: MixedSource) -> None:
        self._parts, self._origin, self._starts = parts, source.origin, source.starts
        self.words = "; ".join(dict.fromkeys(part.words for part in parts))
        forms = {part.form for part in parts}
        self.form = forms.pop() if len(forms) == 1 else None

    def image(self, index: int) -> np.ndarray | Planes | None:
        number = self._origin(index)
        return self._parts[number].image(index - self._starts[number])

    def ask(self, index: int, top: int = 0, bottom: int | None = None) -> None:
        number = self._origin(index)
        self._parts[number].ask(index - self._starts[number], top, bottom)

    def size(self, index: int) -> tuple[int, int] | None:
        number = self._origin(index)
        return self._parts[number].size(index - self._starts[number])
