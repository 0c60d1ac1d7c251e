"""Bounded memory for decoding: threads reserve what an image needs, by its header, before they allocate it.

A PNG of a few kilobytes may hold 89 million pixels, a gigabyte while it is decoded; sixty-four threads with one each
would be more than a machine has.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ...control_groups import GROUPS, PROCESS, folders

_VERSION_1, _VERSION_2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
_UNKNOWN = 8 << 30  # bytes that are taken to be free on systems that do not say
_LARGE = 8  # what takes more than such a part of the budget is given back to the system at once
BYTES_PER_PIXEL = 12  # at the most: 4 in Pillow, 4 in a copy that is turned or converted, 3 as RGB


class Budget:
    """`total` bytes that threads share; None: half of the memory that is free when it is first asked for.

    Requests are served in the order in which they come. One that is larger than `total` is served when nothing else
    is, and meanwhile holds `alone`, which several processes may share. A thread that has a reservation needs no other,
    so nobody waits while holding one: there is no deadlock.
    """

    def __init__(self, total: int | None = None, alone: AbstractContextManager | None = None) -> None:
        self._total, self._alone = total, alone or nullcontext()
        self.forget()

    def forget(self) -> None:
        """Nobody holds or waits for anything: so it is in a process that was forked off, whose threads did not come."""
        self._used, self._waiting = 0, deque()
        self._changed = threading.Condition()
        self._mine = threading.local()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Room for decoding an image of so many pixels, and for using it, while the body runs."""
        if getattr(self._mine, "held", False):
            yield
            return
        size = pixels * BYTES_PER_PIXEL
        with self._changed:
            if self._total is None:
                self._total = free_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            if self._waiting or not self._fits(size):
                ticket = object()
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._waiting[0] is ticket and self._fits(size))
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
            self._used += size
        self._mine.held = True
        try:
            with self._alone if size > self._total else nullcontext():
                yield
        finally:
            self._mine.held = False
            if self._waiting or size > self._total // _LARGE:
                _give_back()
            with self._changed:
                self._used -= size
                if self._waiting:
                    self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._total


def free_memory(process: Path = PROCESS, groups: Path = GROUPS) -> int:
    """Bytes that this process may still take: of the machine, and of its control groups where these have a limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        least = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return _UNKNOWN
    for folder in folders("memory", process, groups):
        for files in (_VERSION_1, _VERSION_2):
            try:
                limit, used = (int((folder / name).read_text(encoding="utf-8")) for name in files)
                least = min(least, limit - used)
            except (OSError, ValueError):  # not this version, or "max"
                pass
    return max(0, least)


def _give_back() -> None:
    """glibc keeps what was freed in the thread's own arena, where no other thread gets at it."""
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_current = Budget()


def use_budget(new: Budget) -> None:
    """From here on, for everything that this process decodes."""
    global _current
    _current = new


os.register_at_fork(after_in_child=lambda: _current.forget())


def reserve(pixels: int) -> AbstractContextManager:
    """`Budget.reserve` of this process's budget."""
    return _current.reserve(pixels)
