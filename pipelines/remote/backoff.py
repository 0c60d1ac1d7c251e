"""Trying again: at growing intervals with jitter, as long as a server may be silent."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ...errors import ProcessError
from .stores import Transient

PATIENCE = 300.0  # seconds without a byte until a server is given up
_FIRST, _LONGEST = 0.25, 30.0  # seconds between attempts, at most; what a server asks for is granted up to the second
_T = TypeVar("_T")


class Unreachable(ProcessError):
    """A store has not answered for as long as anybody was willing to wait."""


class Stopped(ProcessError):
    """Nobody wants the result any more."""

    def __init__(self) -> None:
        super().__init__("the reader was closed meanwhile")


class Backoff:
    """The pauses between attempts at one thing, which is given up after `patience()` seconds without progress.

    Pauses are uniform in [0, d] with d doubling ("full jitter"), so that many processes that one fault has hit do not
    come back together. `stop` ends a pause with `Stopped`.
    """

    def __init__(self, what: str, patience: Callable[[], float], stop: threading.Event) -> None:
        self._what, self._patience, self._stop, self._random = what, patience, stop, random.Random()
        self.progress()

    def progress(self) -> None:
        """Something came: the next fault is a new one."""
        self._since, self._delay = time.monotonic(), _FIRST

    def pause(self, fault: Transient) -> None:
        """Waits after a fault. Raises `Unreachable` when the patience is at its end."""
        if self._stop.is_set():
            raise Stopped
        pause = max(self._random.uniform(0, self._delay), min(fault.wait, _LONGEST))
        self._delay = min(2 * self._delay, _LONGEST)
        ends = time.monotonic() + pause
        while (now := time.monotonic()) < ends:
            if now - self._since > self._patience():
                break
            if self._stop.wait(min(ends - now, 0.2)):  # the patience may shrink meanwhile
                raise Stopped
        silent = time.monotonic() - self._since
        if silent > self._patience():
            raise Unreachable(
                f"{self._what}: {fault}, for {silent:,.0f} seconds; check the connection, and run the same again"
            ) from fault


def insist(work: Callable[[], _T], what: str, patience: float = PATIENCE, stop: threading.Event | None = None) -> _T:
    """What `work` returns, called again after every `Transient`. Raises `Unreachable`, `Stopped` or its `OSError`."""
    backoff = Backoff(what, lambda: patience, stop or threading.Event())
    while True:
        try:
            return work()
        except Transient as fault:
            backoff.pause(fault)
