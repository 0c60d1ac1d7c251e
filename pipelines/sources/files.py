"""A table of image files under one root: what every source of loose files is, however it found them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def text(path: bytes) -> str:
    """A path as people read it: bytes that are no UTF-8 appear as backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


class FileSource:
    """The files `paths` under `root`, in that order.

    `paths` are relative; `labels` is (N,) int32, -1 for none, and `classes` names the labels; both None where there are
    no labels. `label_source` says where labels come from: "folder", "list", "annotations" or "none". `notes` are
    sentences on what was passed over, for whoever opens the source.

    `read` raises `OSError` for a file that has gone since.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        paths: Sequence[bytes],
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        label_source: str = "none",
        notes: Sequence[str] = (),
    ) -> None:
        self.root, self.name = Path(root), str(root)
        # one block of bytes: a million Python strings would take twice the memory, and again in every worker
        self._paths = b"".join(paths)
        self._ends = np.cumsum(np.fromiter(map(len, paths), np.int64, len(paths)))
        self._labels, self.classes, self.label_source = labels, classes, label_source
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self._ends)

    def _relative(self, index: int) -> bytes:
        return self._paths[self._ends[index - 1] if index else 0 : self._ends[index]]

    def path(self, index: int) -> str:
        """The file, as the operating system calls it."""
        return os.path.join(self.root, os.fsdecode(self._relative(index)))

    def read(self, index: int) -> np.ndarray:
        """The file's bytes, 1-D uint8."""
        with open(self.path(index), "rb", buffering=0) as file:
            return np.frombuffer(file.read(), np.uint8)

    def extent(self, index: int) -> tuple[Path, int, int]:
        """(file, 0, its size in bytes), as `MappedSource.extent`. Raises `OSError` for a file that has gone."""
        path = Path(self.path(index))
        return path, 0, path.stat().st_size

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    def key(self, index: int) -> str:
        """Path relative to the root."""
        return text(self._relative(index))

    def size(self, index: int) -> None:
        """Unknown until the file is read."""
        return None
