"""Shards behind an address, in the exact order of shards on a disk: what ``headrace shard`` wrote there, fetched ahead
into this machine's cache and mapped from there; few bytes of a shard that is not wanted whole are asked for alone.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..remote.backoff import Unreachable, insist
from ..remote.cache import Shard, ShardCache, digest
from ..remote.fetcher import Fetcher
from ..remote.stores import Missing, Store, open_store, read
from .mapped import MappedSource
from .shards import INDEX_FILE, MANIFEST, as_manifest, check_index
from .tar import BLOCK, name_in

_OPENING = (10.0, 60.0)  # seconds that a store may be silent when a folder is opened: known from before, or not
_THREADS = 32  # that ask for few bytes at a time


class RemoteShards(MappedSource):
    """The images of a folder of shards at `address`. `read` gives a read-only view of the cached shard, or bytes.

    Raises `UserError` where there is none, or no answer. Reading raises `Unreachable`, a `UserError`, where a store has
    been silent for minutes: whatever was read is as it was, and nothing counts as bad.
    """

    notes: Sequence[str] = ()

    def __init__(self, address: str) -> None:
        store, cache = open_store(address), ShardCache()
        manifest, key = self._manifest(store, cache)
        where = f"{store.address}/{MANIFEST}"
        shards = _shards(manifest, where)
        sizes = [shard.bytes for shard in shards]
        if len(shards) and max(sizes) > cache.limit:
            raise UserError(
                f"{cache.folder}: a shard of {max(sizes) / 1e9:,.1f} GB does not fit in a cache of "
                f"{cache.limit / 1e9:,.1f} GB; raise HEADRACE_CACHE_GB, or name a larger disk in HEADRACE_CACHE"
            )
        index = self._fetch_index(store, cache, key, manifest["samples"], sizes)
        super().__init__(
            address, [Path(s.name) for s in shards], sizes, index, manifest["classes"], manifest["label_source"]
        )
        self._fetcher, self._glanced = Fetcher(store, shards, cache), f"{key}.glance.npz"
        self._few = _load_few(cache.folder / self._glanced)
        self._silent: Unreachable | None = None  # why few bytes are not asked for any more

    def _manifest(self, store: Store, cache: ShardCache) -> tuple[dict, str]:
        """The manifest, from the store or as it was when the store could last be reached, and a name for it."""
        known = cache.folder / f"{_digest(store.address.encode())}.{MANIFEST}"
        where = f"{store.address}/{MANIFEST}"
        try:
            data = insist(lambda: read(store, MANIFEST), where, _OPENING[not known.exists()])
        except Missing as fault:
            hint = "give the folder that `headrace shard` wrote"
            raise UserError(f"{where}: {fault}; {hint}") from None
        except OSError as fault:
            raise UserError(f"{where}: {fault}; check the address, and who may read there") from None
        except Unreachable as fault:
            if not known.exists():
                raise
            data = known.read_bytes()
            self.notes = [f"not to be reached ({fault.__cause__}); read from {cache.folder} as far as it is there"]
        manifest = as_manifest(data, where)
        if manifest is None:
            raise UserError(f"{where}: not written by `headrace shard`; give a folder that it wrote")
        if not self.notes:
            _keep(cache, known.name, data)
        return manifest, _digest(data)

    def _fetch_index(self, store: Store, cache: ShardCache, key: str, samples: int, sizes: list[int]) -> np.ndarray:
        """The index that belongs to the manifest, mapped from the cache, where its own checksum is its name."""
        where = f"{store.address}/{INDEX_FILE}"
        for self._index_file in cache.folder.glob(f"{key}-*.index.npy"):
            try:
                with open(self._index_file, "rb") as opened:
                    if digest(opened).hexdigest() == self._index_file.name[len(key) + 1 :].partition(".")[0]:
                        return np.asarray(np.load(self._index_file, mmap_mode="r"))
                self._index_file.unlink(missing_ok=True)  # damaged
            except OSError:
                pass
        try:
            data = insist(lambda: read(store, INDEX_FILE), where, _OPENING[1])
            check_index(store.address, np.load(io.BytesIO(data)), samples, sizes)
        except (OSError, ValueError, EOFError) as fault:
            raise UserError(f"{where}: cannot be read ({fault}); copy it there again, or shard again") from None
        self._index_file = cache.folder / f"{key}-{hashlib.sha256(data).hexdigest()}.index.npy"
        _keep(cache, self._index_file.name, data)
        return np.asarray(np.load(self._index_file, mmap_mode="r"))

    # ---- reading

    def read(self, index: int) -> np.ndarray:
        shard, offset, size, *_ = self.index[index].item()
        return self._bytes(shard, offset, size)

    def key(self, index: int) -> str:
        """``<tar>/<member>``, read from the member's header."""
        shard, offset, *_ = self.index[index].item()
        return f"{self._files[shard].name}/{name_in(self._bytes(shard, offset - BLOCK, BLOCK).tobytes())}"

    def encoded_size(self, index: int) -> int:
        """In bytes, without reading them."""
        return int(self.index["size"][index])

    def _bytes(self, shard: int, start: int, size: int) -> np.ndarray:
        pages = self._pages(shard)
        if pages is not None:
            return pages[start : start + size]
        data = self._few.get((shard, start))
        if data is None or len(data) != size:
            data = np.frombuffer(self._piece(shard, start, size), np.uint8)
        return data

    def _pages(self, shard: int) -> np.ndarray | None:
        """A map of a shard that is here or on its way; None for one that nobody has asked for."""
        pages = self._maps.get(shard)
        if pages is not None and pages.base.obj.size() == self._sizes[shard]:
            return pages
        while (path := self._fetcher.file(shard)) is not None:
            try:
                with open(path, "rb") as file:
                    self._check_size(shard, os.fstat(file.fileno()).st_size)
                    pages = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except OSError:  # removed by another process, or cut
                self._fetcher.forget(shard)
                continue
            self._maps[shard] = pages
            return pages
        return None

    def _piece(self, shard: int, start: int, size: int) -> bytes:
        if self._silent is not None:  # to wait minutes for each of a thousand samples would be a hang
            raise self._silent
        try:
            return self._fetcher.piece(shard, start, size)
        except Unreachable as fault:
            self._silent = fault
            raise

    def glance(self, keys: Iterable[int] = (), images: Iterable[int] = ()) -> None:
        """The names of `keys` and the bytes of `images` will be asked for: all at once, and kept for runs to come."""
        wanted = [(shard, offset - BLOCK, BLOCK) for shard, offset, *_ in (self.index[i].item() for i in keys)]
        wanted += [self.index[i].item()[:3] for i in images]
        wanted = [one for one in dict.fromkeys(wanted) if one[:2] not in self._few]
        if not wanted:
            return
        with ThreadPoolExecutor(_THREADS) as threads:
            found = list(threads.map(lambda one: np.array(self._bytes(*one)), wanted))
        self._few |= {one[:2]: data for one, data in zip(wanted, found, strict=True)}
        buffer = io.BytesIO()
        np.savez(buffer, places=np.array(list(self._few), "u8"), sizes=[len(d) for d in self._few.values()],
                 data=np.concatenate(list(self._few.values())))  # fmt: skip
        _keep(self._fetcher.cache, self._glanced, buffer.getvalue())

    # ---- ahead of readers

    def follow(self, reader: object, coming: Callable[[int], Iterable[int]], step: int) -> None:
        """`reader` is at `step` and will read the samples ``coming(step)``, ``coming(step + 1)``, ... in that order."""

        def shards_at(step: int) -> list[int]:
            return list(dict.fromkeys(self.index["shard"][np.asarray(coming(step))].tolist()))

        self._silent = None
        held = self._fetcher.follow(reader, shards_at, step)
        for shard in [shard for shard in self._maps if shard not in held]:
            self._maps.pop(shard, None)  # what is mapped takes room on the disk even where it was removed

    def leave(self, reader: object) -> None:
        """The reader reads no more."""
        self._fetcher.leave(reader)

    def hurry(self) -> None:
        """The run was asked to stop: nobody waits for minutes any more."""
        self._fetcher.hurry()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"index": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.index = np.asarray(np.load(self._index_file, mmap_mode="r"))


def _shards(manifest: dict, where: str) -> list[Shard]:
    """What a manifest says of its shards. Raises `UserError` for one that names other things than files beside it."""
    try:
        shards = [Shard(str(one["name"]), int(one["bytes"]), str(one["sha256"])) for one in manifest["shards"]]
        sound = all(re.fullmatch(r"[\w-][\w.-]*", s.name, re.ASCII) and s.bytes > 0 for s in shards)
        sound &= all(re.fullmatch(r"[0-9a-f]{64}", s.sha256) for s in shards) and isinstance(manifest["samples"], int)
        sound &= isinstance(manifest["classes"], list | None) and isinstance(manifest["label_source"], str)
    except (LookupError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{where}: its list of shards is damaged; copy it there again, or shard again")
    return shards


def _keep(cache: ShardCache, name: str, data: bytes) -> None:
    try:
        cache.keep_beside(name, data)
    except OSError as fault:
        raise UserError(
            f"{cache.folder}: cannot be written ({fault.strerror}); name another in HEADRACE_CACHE"
        ) from None


def _load_few(file: Path) -> dict[tuple[int, int], np.ndarray]:
    """(shard, start) -> bytes that were asked for before."""
    try:
        with np.load(file) as kept:
            ends = np.cumsum(kept["sizes"]).tolist()
            parts = np.split(kept["data"], ends[:-1])
            return {tuple(place): part for place, part in zip(kept["places"].tolist(), parts, strict=True)}
    except Exception:  # not there, or damaged: it will be asked for again
        return {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
