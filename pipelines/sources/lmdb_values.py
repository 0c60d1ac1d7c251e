"""LMDB: image files that are the values of a database, in the order of their keys, as LSUN has them. An extra."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from ...errors import UserError
from ..images.decode import begins_as_image
from .files import text

_HEAD = 32  # bytes of a value that tell whether it is an image
_opened, _lock = WeakValueDictionary(), threading.Lock()  # a process may open a database once


def _forget() -> None:
    """In a forked process, which may not use what its parent has opened."""
    global _lock
    _lock = threading.Lock()
    for database in list(_opened.values()):
        database.close()
    _opened.clear()


os.register_at_fork(after_in_child=_forget)


class LmdbSource:
    """The values of an LMDB database that begin as image files do, sorted bytewise by their keys, without labels.

    `path`: the folder of ``data.mdb``, or a file. Nobody may write meanwhile: no lock is taken. Raises `UserError`.
    """

    classes, label_source = None, "none"

    def __init__(self, path: str | os.PathLike) -> None:
        self.name, self._path = str(path), Path(path)
        try:
            import lmdb
        except ImportError:
            raise UserError(f"{path}: needs the extra [lmdb]: pip install 'headrace[lmdb]', or lmdb alone") from None
        self._database, self._process = None, 0
        keys, others = [], 0
        try:
            with self._open().begin(buffers=True) as reader:
                for key, value in reader.cursor():
                    if begins_as_image(bytes(value[:_HEAD])):
                        keys.append(bytes(key))
                    else:
                        others += 1
        except lmdb.Error as fault:
            raise UserError(f"{path}: cannot be read as LMDB ({fault}); give the folder of data.mdb") from None
        if not keys:
            raise UserError(f"{path}: none of its {others:,} values is an image file; shard what its own reader reads")
        self._keys, self._ends = b"".join(keys), np.cumsum([len(key) for key in keys])
        self.notes = [f"passed over: {others:,} value{'s' * (others != 1)} that are no image files"] if others else []

    def _open(self):
        import lmdb

        with _lock:
            if self._process != os.getpid():
                folder = self._path.is_dir()
                status = os.stat(self._path / "data.mdb" if folder else self._path)
                identity = status.st_dev, status.st_ino
                found = _opened.get(identity)
                if found is None:
                    options = {"readonly": True, "lock": False, "readahead": False, "create": False}
                    found = _opened[identity] = lmdb.open(str(self._path), subdir=folder, **options)
                self._database, self._process = found, os.getpid()
            return self._database

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_database": None, "_process": 0}

    def __len__(self) -> int:
        return len(self._ends)

    def _key(self, index: int) -> bytes:
        return self._keys[self._ends[index - 1] if index else 0 : self._ends[index]]

    def read(self, index: int) -> np.ndarray:
        """The value's bytes, 1-D uint8. Raises `OSError` where they have gone."""
        import lmdb

        try:
            with self._open().begin() as reader:
                value = reader.get(self._key(index))
        except lmdb.Error as fault:
            raise OSError(f"{self._path}: {fault}") from None
        if value is None:
            raise OSError(f"{self._path}: this key has gone since the database was opened")
        return np.frombuffer(value, np.uint8)

    def label(self, index: int) -> int:
        return -1

    def key(self, index: int) -> str:
        return text(self._key(index))

    def size(self, index: int) -> None:
        return None
