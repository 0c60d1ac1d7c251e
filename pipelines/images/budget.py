"""Bounded memory for decoding: threads reserve what an image needs, by its header, before they allocate it.

A PNG of a few kilobytes may hold 89 million pixels, a gigabyte while it is decoded; sixty-four threads with one each
would be more than a machine has.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")  # limit and use, in the two versions of control groups
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
BYTES_PER_PIXEL = 12  # at the most: 4 in Pillow, 4 in a copy that is turned or converted, 3 as RGB


class Budget:
    """`total` bytes that threads share; None: half of the memory that is free when it is first asked for.

    Requests are served in the order in which they come. One that is larger than `total` is served when nothing else
    is, and meanwhile holds `alone`, which several processes may share. A thread that has a reservation needs no other,
    so nobody waits while holding one: there is no deadlock.
    """

    def __init__(self, total: int | None = None, alone: AbstractContextManager | None = None) -> None:
        self._total, self._alone = total, alone or nullcontext()
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
            with self._changed:
                self._used -= size
                if self._waiting:
                    self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._total


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group where that has a limit."""
    info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = [int(info["MemAvailable"].split()[0]) << 10]
    for limit, used in _GROUP_FILES:
        try:
            found.append(int((_GROUP / limit).read_text()) - int((_GROUP / used).read_text()))
        except (OSError, ValueError):  # another version of control groups, or "max"
            pass
    return max(0, min(found))


_current = Budget()


def use_budget(new: Budget) -> None:
    """From here on, for everything that this process decodes."""
    global _current
    _current = new


def reserve(pixels: int) -> AbstractContextManager:
    """`Budget.reserve` of this process's budget."""
    return _current.reserve(pixels)
