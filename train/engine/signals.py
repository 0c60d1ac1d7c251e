"""How a run is asked to stop, and how its processes agree on the step at which they do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers that take a machine back: save, then end with 0


class StopRequest:
    """A context in which SIGTERM and SIGUSR1 do not end the process but make `agreed` true on every process.

    `group` is a group of CPU collectives of all processes, None for a single one. The answer of a step is that of the
    step before, so that nobody waits for it: all processes learn of a signal within two steps, at the same step.
    `hurry` is called at once, in the signal's handler: a loader may learn that there is no time to wait for a server.
    """

    def __init__(self, group: dist.ProcessGroup | None, hurry: Callable[[], None] | None = None) -> None:
        self._group, self._pending, self._hurry = group, None, hurry
        self.signal: str | None = None  # the one that this process received

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number).name
        if self._hurry is not None:
            self._hurry()

    def agreed(self) -> bool:
        """Called once a step by every process."""
        if self._group is None:
            return self.signal is not None
        asked = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            asked = bool(flag)
        flag = torch.tensor(self.signal is not None, dtype=torch.int32)
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, self._group, async_op=True), flag)
        return asked
