"""How a run is asked to stop, and how its processes agree on the step at which they do."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.distributed as dist

# of schedulers that take a machine back, of a person at the keyboard, of a terminal that closes: save, then end with 0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_SHELL = (signal.SIGINT, signal.SIGHUP)  # which nohup and shells have a program ignore that runs in the background
_LOOK = 1.0  # seconds between two looks at whether another process was asked
_ONE_PRESS = 1.0  # seconds: torchrun hands on the Ctrl-C that the terminal has sent to all processes itself


class StopRequest:
    """A context in which `SIGNALS` do not end the process but make `agreed` true on every process; Ctrl-C a second time
    ends it at once.

    `group` is a group of CPU collectives of all processes, None for a single one. The answer of a step is that of the
    step before, so that nobody waits for it: all processes learn of a signal within two steps, at the same step.
    `hurry` is called at once, in the signal's handler: a loader may learn that there is no time to wait for a server.
    Of several processes, all hear of a signal to one of them, be that one in the midst of a collective: see `_spread`.
    """

    _number = 0  # how many there have been: the same on every process

    def __init__(self, group: dist.ProcessGroup | None, hurry: Callable[[], None] | None = None) -> None:
        self._group, self._pending, self._hurry = group, None, hurry
        self.signal: str | None = None  # the one that this process received
        self._listener: threading.Thread | None = None
        self._interrupted: float | None = None  # when Ctrl-C was pressed

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            taken = [n for n in SIGNALS if n not in _SHELL or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in taken}
        StopRequest._number += 1
        if self._group is not None and self._hurry is not None and self._before:
            self._spread()
        return self

    def _spread(self) -> None:
        """A thread that hands a signal on to all processes, by the store at which they met.

        Python runs handlers between two steps of the main thread, hence not while that waits in a collective for a
        process whose server is silent. `set_wakeup_fd` tells of signals at once.
        """
        store, key = dist.distributed_c10d._get_default_store().clone(), f"headrace/stop/{self._number}"
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        self._wakeup = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)

        def listen() -> None:
            with suppress(RuntimeError, OSError):  # the store is gone, and with it what is waited for
                while True:
                    heard = os.read(self._ear, 64) if select.select([self._ear], [], [], _LOOK)[0] else b""
                    if 0 in heard:  # the end
                        return
                    if set(heard) & set(SIGNALS):
                        store.set(key, "yes")
                    if store.check([key]):
                        return self._hurry()

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()

    def __exit__(self, *_) -> None:
        if self._listener is not None:
            signal.set_wakeup_fd(self._wakeup)
            with suppress(OSError):
                os.write(self._mouth, b"\0")
            self._listener.join(_LOOK)
            os.close(self._mouth)
            os.close(self._ear)
            self._listener = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._interrupted is not None:
            if now - self._interrupted > _ONE_PRESS:
                raise KeyboardInterrupt
            return
        self.signal = signal.Signals(number).name
        if self._hurry is not None:
            self._hurry()
        if number == signal.SIGINT:
            self._interrupted = now
            with suppress(OSError):  # not `print`, which may be what was interrupted
                os.write(2, b"\nheadrace: saves after this step; Ctrl-C again ends at once\n")

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
