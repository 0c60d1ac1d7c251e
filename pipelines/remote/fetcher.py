"""Fetches the shards of a folder into this machine's cache, in the background, in the order they will be wanted."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .backoff import PATIENCE, Backoff, Stopped, Unreachable, insist
from .cache import Shard, ShardCache, digest, no_space
from .stores import SILENCE, Store, Transient, read
from .walk import Walk

CONNECTIONS = 4  # of a process at a time
_ASIDE = 60.0  # seconds that it may be silent when few bytes are asked for, and no run goes on
_HURRY = 5.0  # seconds that a server may be silent once the run was asked to stop
_TICK = 0.2  # seconds between two looks at another process's work
_ATTEMPTS = 3  # to get the bytes of which manifest and server do not agree


class Damaged(OSError):
    """A shard whose bytes are not those that the manifest names, however often it is fetched."""


class Fetcher:
    """Shards by number, from `store` or the cache. Safe to use from several threads; pickles without its threads.

    Readers with a known order `follow` it: what they will want is fetched ahead, and kept until they have passed it.
    """

    def __init__(self, store: Store, shards: Sequence[Shard], cache: ShardCache) -> None:
        self.store, self.shards, self.cache = store, shards, cache
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._walks: dict[object, Walk] = {}
        self._queue: deque[int] = deque()
        self._asked: set[int] = set()  # in the queue or on their way
        self._there: dict[int, Path] = {}
        self._faults: dict[int, Exception] = {}
        self._threads, self._stop, self._patience = 0, threading.Event(), PATIENCE

    def __getstate__(self) -> dict:
        return {"store": self.store, "shards": self.shards, "cache": self.cache}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()

    # ---- for readers

    def follow(self, reader: object, shards_at: Callable[[int], Sequence[int]], step: int) -> set[int]:
        """`reader` is at `step` of an order that reads the shards ``shards_at(step)``. Returns the shards that are held
        for all readers together."""
        if self._process != os.getpid():  # a forked process has none of the threads
            self._begin()
        with self._changed:
            if reader not in self._walks:
                room = self.cache.limit // (len(self._walks) + 1)
                self._walks[reader] = Walk(shards_at, [shard.bytes for shard in self.shards], room)
            for number in self._walks[reader].to(step, self._there):
                self._ask(number)
            return self._held()

    def leave(self, reader: object) -> None:
        """The reader wants nothing more. After the last one nothing is fetched, and who still waits is told."""
        with self._changed:
            self._walks.pop(reader, None)
            if not self._walks:
                self._stop.set()
                self._queue.clear()
                self._asked.clear()
                self._faults.clear()
                self._threads, self._stop, self._patience = 0, threading.Event(), PATIENCE
            self._changed.notify_all()

    def hurry(self) -> None:
        """The run was asked to stop: a silent server has a few seconds left. Safe to call in a signal handler."""
        self._patience = _HURRY

    def file(self, number: int) -> Path | None:
        """The file of a shard: at once if it is here, later if it is on its way; None if nobody has asked for it.

        Raises `Unreachable`, or `OSError` for a shard that the store does not have as it should be.
        """
        if (file := self._there.get(number)) is not None:
            return file
        if self._process != os.getpid():
            self._begin()
        with self._changed:
            stop = self._stop
            while number not in self._there:
                if fault := self._faults.get(number):
                    if isinstance(fault, OSError):  # which stays; of others the next one may try again
                        raise fault
                    raise self._faults.pop(number)
                if number not in self._asked:
                    if (file := self.cache.find(self.shards[number])) is not None:
                        self._there[number] = file
                        break
                    if number not in self._held():
                        return None
                    self._ask(number)  # another process has removed it, or the store was not to be reached
                self._changed.wait()
                if stop.is_set():
                    raise Stopped
            return self._there[number]

    def forget(self, number: int) -> None:
        """The file of a shard is not to be had any more."""
        with self._changed:
            self._there.pop(number, None)

    def piece(self, number: int, start: int, size: int) -> bytes:
        """The bytes [start, start + size) of a shard, from the store."""
        name = self.shards[number].name
        where = f"{self.store.address}/{name}"
        patience = self._patience if self._walks else _ASIDE
        return insist(lambda: read(self.store, name, start, start + size), where, patience, self._stop)

    # ---- in the background

    def _held(self) -> set[int]:
        return set().union(*(walk.held for walk in self._walks.values()))

    def _ask(self, number: int) -> None:
        if number in self._asked:
            return
        if number in self._there and self.cache.find(self.shards[number]) is not None:  # which is a use
            return
        self._there.pop(number, None)
        self._asked.add(number)
        self._queue.append(number)
        if self._threads < CONNECTIONS:
            self._threads += 1
            threading.Thread(target=self._work, args=(self._stop,), name="headrace-fetch", daemon=True).start()

    def _work(self, stop: threading.Event) -> None:
        while True:
            with self._changed:
                if stop.is_set():
                    return
                if not self._queue:
                    self._threads -= 1
                    return
                number = self._queue.popleft()
            file = fault = None
            try:
                file = self._fetch(self.shards[number], stop)
            except Stopped:
                return
            except Exception as problem:  # who waits for the shard hears of it
                fault = problem
            with self._changed:
                if not stop.is_set():
                    self._asked.discard(number)
                    if file is not None:
                        self._there[number] = file
                    else:
                        self._faults[number] = fault
                self._changed.notify_all()

    def _keep(self) -> set[str]:
        with self._changed:
            return {self.shards[number].sha256 for number in self._held()}

    def _fetch(self, shard: Shard, stop: threading.Event) -> Path:
        """The file of a shard, fetched by this process or by another one of the machine."""
        came, since = 0, time.monotonic()
        while True:
            if (file := self.cache.find(shard)) is not None:
                return file
            with self.cache.writing(shard) as descriptor:
                if descriptor is not None:
                    if (file := self.cache.find(shard)) is not None:  # by who held the lock until now
                        self.cache.give_up(shard)
                        return file
                    if self._room(shard):
                        self._download(descriptor, shard, stop)
                        return self.cache.complete(descriptor, shard)
                    if not os.fstat(descriptor).st_size:  # others may want the room meanwhile
                        self.cache.give_up(shard)
            if stop.wait(_TICK):
                raise Stopped
            if (now := self.cache.arrived(shard)) != came:
                came, since = now, time.monotonic()
            elif time.monotonic() - since > self._patience + SILENCE:
                if descriptor is not None:
                    raise self.cache.too_small()
                raise Unreachable(
                    f"{self.store.address}/{shard.name}: another process fetches it, and nothing comes; end that one"
                )

    def _room(self, shard: Shard) -> bool:
        """Whether there is room for a shard; what is on its way to other readers may stand in its way for now."""
        keep = self._keep()
        if sum(one.bytes for one in self.shards if one.sha256 in keep) > self.cache.limit:
            raise self.cache.too_small()
        return self.cache.make_room(shard, keep)

    def _download(self, descriptor: int, shard: Shard, stop: threading.Event) -> None:
        """Completes what has come of a shard so far."""
        where = f"{self.store.address}/{shard.name}"
        backoff = Backoff(where, lambda: self._patience, stop)
        for _ in range(_ATTEMPTS):
            os.lseek(descriptor, 0, os.SEEK_SET)
            with os.fdopen(os.dup(descriptor), "rb", buffering=0) as begun:
                total = digest(begun)
            while (have := os.fstat(descriptor).st_size) < shard.bytes:
                try:
                    self._receive(descriptor, shard, have, total, backoff, stop)
                except Transient as fault:
                    backoff.pause(fault)
            if have == shard.bytes and total.hexdigest() == shard.sha256:
                return
            os.ftruncate(descriptor, 0)
        raise Damaged(f"{where}: its bytes are not those of the manifest, {_ATTEMPTS} times in a row")

    def _receive(self, descriptor: int, shard: Shard, have: int, total: Any, backoff, stop) -> None:
        reply = self.store.get(shard.name, have)
        skip = have - reply.start  # of what a server gives that knows no ranges
        os.lseek(descriptor, have, os.SEEK_SET)
        for piece in reply.pieces:
            if stop.is_set():
                raise Stopped
            fresh, skip = piece[skip:], max(0, skip - len(piece))
            fresh = fresh[: shard.bytes - have]
            if len(fresh):
                self._write(descriptor, fresh, shard)
                total.update(fresh)
                have += len(fresh)
                backoff.progress()
            if have == shard.bytes:
                return
        if have < shard.bytes:
            raise Transient(f"it ends after {have:,} of {shard.bytes:,} bytes")

    def _write(self, descriptor: int, data: memoryview, shard: Shard) -> None:
        while len(data):
            try:
                data = data[os.write(descriptor, data) :]
            except OSError as fault:
                if not no_space(fault):
                    raise
                if not self.cache.make_room(shard, self._keep(), more=shard.bytes):
                    raise self.cache.too_small() from None
