"""Images that lie at known offsets inside large files: an index in NumPy, the files in memory maps."""

from __future__ import annotations

import mmap
import os
import resource
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError

INDEX = np.dtype(
    [
        ("shard", "<u4"),  # which of the files
        ("offset", "<u8"),  # of the image's bytes in it
        ("size", "<u4"),  # in bytes
        ("label", "<i4"),  # -1: none
        ("height", "<u4"),  # of the upright image in pixels; 0: unknown
        ("width", "<u4"),
    ]
)


class MappedSource:
    """The images that `index` (a row of `INDEX` each) finds in `files`, which are `sizes` bytes long.

    `read` gives a read-only view of a map and copies nothing; it raises `OSError` for a file that has gone or changed
    its size.
    A subclass says what a sample is called (`key`). Pickles without its maps.
    """

    _advice: int | None = None  # of `mmap.madvise`, for all of a file

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        sizes: Sequence[int],
        index: np.ndarray,
        classes: list[str] | None,
        label_source: str,
    ) -> None:
        self.name, self.index, self.classes, self.label_source = name, index, classes, label_source
        self._files, self._sizes = files, sizes
        self._maps: dict[int, np.ndarray] = {}
        allow_open_files(len(files))

    def __len__(self) -> int:
        return len(self.index)

    def _map(self, shard: int) -> np.ndarray:
        pages = self._maps.get(shard)
        if pages is None:  # two threads may both map it once; either map is as good
            with open(self._files[shard], "rb") as file:
                self._check_size(shard, os.fstat(file.fileno()).st_size)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._advice is not None:
                mapped.madvise(self._advice)
            pages = np.frombuffer(mapped, np.uint8)
            self._maps[shard] = pages
        else:  # 0.5 us: to touch a page behind the end of a file that has been cut since would kill the process
            self._check_size(shard, pages.base.obj.size())
        return pages

    def _check_size(self, shard: int, found: int) -> None:
        if found != self._sizes[shard]:
            raise OSError(f"{self._files[shard]}: its size has changed since the data set was opened")

    def read(self, index: int) -> np.ndarray:
        """The image's bytes, 1-D uint8: a view of the map, valid as long as somebody holds it."""
        shard, offset, size, *_ = self.index[index].item()
        return self._map(shard)[offset : offset + size]

    def label(self, index: int) -> int:
        return int(self.index["label"][index])

    def neighbours(self, index: int) -> tuple[int, int]:
        """(first, last): the samples [first, last) lie in the same file. The index is sorted by file."""
        shards = self.index["shard"]
        shard, everything = int(shards[index]), range(len(shards))  # searchsorted would copy the whole column
        return bisect_left(everything, shard, key=shards.item), bisect_right(everything, shard, key=shards.item)

    def place(self, index: int) -> tuple[str, int]:
        """(name of the file, position of the image in it in bytes)."""
        shard, offset, *_ = self.index[index].item()
        return self._files[shard].name, offset

    def extent(self, index: int) -> tuple[Path, int, int]:
        """(file, position of the image in it and its size in bytes), for who reads past the map."""
        shard, offset, size, *_ = self.index[index].item()
        return self._files[shard], offset, size

    def key(self, index: int) -> str:
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int] | None:
        *_, height, width = self.index[index].item()
        return (height, width) if height else None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        allow_open_files(len(self._files))


def allow_open_files(maps: int) -> None:
    """Every map holds a descriptor until Python 3.13, and 1,024 is a common soft limit: the hard one is ours to use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = maps + 512  # the rest of the process wants some, too
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(f"{maps:,} shards, but only {hard:,} files may be open: raise `ulimit -Hn`, or use larger ones")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
