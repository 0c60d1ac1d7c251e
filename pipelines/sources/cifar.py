"""CIFAR-10 and CIFAR-100 in their published "python version": pickles of 32x32 pixels.

ROOT/cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}   50,000 and 10,000 images of 10 classes
ROOT/cifar-100-python/{train,test,meta}                              50,000 and 10,000 images of 100 (fine) classes

They are read by `unpickle.py`, which lets no pickle run anything.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import UserError
from .files import text
from .lookup import choice
from .png import encode_png
from .unpickle import ByteArray, load_pickle

SIDE = 32


class _Cifar:
    """Images in memory, (N, 3072) uint8, handed out as PNG files. Pickles without the pixels and reads them again."""

    folder: str
    files: dict[str, tuple[str, ...]]
    meta: str
    label_key: str
    names_key: str
    label_source = "annotations"

    def __init__(self, path: str | os.PathLike, *, split: str = "train") -> None:
        path = Path(path)
        choice(path, "split", split, self.files)
        self._split, self.name = split, str(path)
        self._root = path / self.folder if (path / self.folder).is_dir() else path
        self._load()

    def _load(self) -> None:
        meta = load_pickle(self._root / self.meta)
        names = meta.get(self.names_key)
        if not isinstance(names, list) or not names or not all(isinstance(name, (bytes, str)) for name in names):
            raise UserError(f"{self._root / self.meta}: no {self.names_key} in it; unpack the archive again")
        self.classes = [text(name) if isinstance(name, bytes) else name for name in names]
        batches = [self._batch(self._root / file) for file in self.files[self._split]]
        self._pixels = np.concatenate([pixels for pixels, _ in batches])
        self._labels = np.concatenate([labels for _, labels in batches])
        self._ends = np.cumsum([len(labels) for _, labels in batches])

    def _batch(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        batch = load_pickle(file)
        data, labels = batch.get("data"), batch.get(self.label_key)
        pixels = data.rows(3 * SIDE * SIDE) if isinstance(data, ByteArray) else None
        if pixels is None or not isinstance(labels, list) or len(labels) != len(pixels):
            what = f"rows of {3 * SIDE * SIDE} bytes as 'data' and as many {self.label_key!r}"
            raise UserError(f"{file}: needs {what}; unpack the archive again")
        if not all(isinstance(label, int) and 0 <= label < len(self.classes) for label in labels):
            raise UserError(f"{file}: a label that is none of {len(self.classes)} classes; unpack the archive again")
        return pixels, np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> np.ndarray:
        """The bytes of a PNG, 1-D uint8. The file stores 1,024 bytes of red, of green, of blue."""
        return encode_png(self._pixels[index].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def key(self, index: int) -> str:
        """``<file>/<row>.png``"""
        file = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[file - 1]) if file else 0)
        return f"{self.files[self._split][file]}/{row:05d}.png"

    def size(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def __getstate__(self) -> dict:
        return {"_split": self._split, "_root": self._root, "name": self.name}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._load()


class Cifar10Source(_Cifar):
    """CIFAR-10, ``split`` train or test. `path` is the folder of the batches or the one that holds it."""

    folder, meta = "cifar-10-batches-py", "batches.meta"
    files = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
    label_key, names_key = "labels", "label_names"


class Cifar100Source(_Cifar):
    """CIFAR-100 with its 100 fine labels, ``split`` train or test. `path` as in CIFAR-10."""

    folder, meta = "cifar-100-python", "meta"
    files = {"train": ("train",), "test": ("test",)}
    label_key, names_key = "fine_labels", "fine_label_names"
