"""Folders behind an address: shards that headrace wrote, else, on Hugging Face, parquet files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable

import numpy as np

from ...errors import UserError
from ..remote.backoff import insist
from ..remote.cache import Shard, ShardCache
from ..remote.fetcher import Fetcher
from ..remote.stores import Missing, open_store
from .parquet import ParquetSource
from .remote_shards import RemoteShards

_PATIENCE = 60.0  # seconds that the hub may be silent


def open_far(name: str) -> RemoteShards | HubParquet:
    """The source at an address. ``hf://datasets/<owner>/<name>[/<folder>][?split=&image=&label=]`` without a manifest
    is a folder of parquet files, at any depth. Raises `UserError` for anything else."""
    if not name.startswith("hf://"):
        return RemoteShards(name)
    address, _, query = name.partition("?")
    options = dict(pair.partition("=")[::2] for pair in query.split("&")) if query else {}
    if unknown := options.keys() - {"split", "image", "label"}:
        raise UserError(f"{name}: no option {min(unknown)!r}; parquet files have split, image and label")
    if not options:
        try:
            return RemoteShards(address)
        except UserError as fault:
            if not isinstance(fault.__context__, Missing):
                raise
    return HubParquet(address, **options)


class HubParquet(ParquetSource):
    """Parquet files of a data set on Hugging Face, whose list gives their checksums: fetched whole into this machine's
    cache, ahead of a known order; of files that are not wanted whole, what is read is asked for alone."""

    def __init__(self, address: str, *, image: str = "", label: str = "", split: str = "") -> None:
        store = open_store(address)
        try:
            listed = insist(lambda: store.listed(recursive=True), address, _PATIENCE)
        except OSError as fault:
            raise UserError(f"{address}: {fault}; check the name, and who may read it (a token in HF_TOKEN)") from None
        known = {name: Shard(name, size, digest) for name, size, digest in listed if name.endswith(".parquet")}
        if unsure := [one.name for one in known.values() if len(one.sha256) != 64]:
            raise UserError(f"{address}: {unsure[0]}: its list has no checksum of it; download the folder instead")
        self._known, self._fetcher, self._mapped, self._root = known, None, set(), None
        self._store, self._cache = store, ShardCache()
        self._begin(address, sorted(known), image, label, split)

    def _fetch(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = Fetcher(self._store, [self._known[name] for name in self.files], self._cache)
        return self._fetcher

    def _file(self, number: int):
        from pyarrow.parquet import ParquetFile

        if number not in self._opened or number not in self._mapped:
            try:
                path = self._fetch().file(number)
                if path is not None:
                    self._opened[number] = ParquetFile(path, memory_map=True)
                    self._mapped.add(number)
                elif number not in self._opened:
                    self._opened[number] = ParquetFile(_Ranges(self._fetch(), number))
            except FileNotFoundError:  # removed by another process
                self._fetch().forget(number)
                return self._file(number)
        return self._opened[number]

    def _beside(self, path: str | None) -> np.ndarray:
        raise OSError("no image in its row")

    def follow(self, reader: object, coming: Callable[[int], Iterable[int]], step: int) -> None:
        """As `RemoteShards.follow`."""

        def files_at(step: int) -> list[int]:
            groups = np.searchsorted(self._starts, np.asarray(coming(step)), side="right") - 1
            return list(dict.fromkeys(self._groups[groups, 0].tolist()))

        held = self._fetch().follow(reader, files_at, step)
        with self._lock:
            for number in self._mapped - held:
                self._mapped.discard(number)
                self._opened.pop(number, None)

    def leave(self, reader: object) -> None:
        self._fetch().leave(reader)

    def hurry(self) -> None:
        self._fetch().hurry()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_mapped": set()}


class _Ranges(io.RawIOBase):
    """A far file that can be read from anywhere."""

    def __init__(self, fetcher: Fetcher, number: int) -> None:
        self._fetcher, self._number, self._at = fetcher, number, 0
        self._size = fetcher.shards[number].bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, room) -> int:
        count = min(len(room), self._size - self._at)
        if count > 0:
            room[:count] = self._fetcher.piece(self._number, self._at, count)
            self._at += count
        return max(count, 0)
