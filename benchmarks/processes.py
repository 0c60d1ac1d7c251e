"""Training runs as child processes that are cheap to start, and faults that happen to them at a given step.

A fork server imports headrace once, and every run is a fork of it: about 0.1 s instead of several. The children know
what torchrun would tell them.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["headrace.benchmarks.preload"])


def start(
    arguments: Sequence[str], log: Path, *, world: int = 1, fault: tuple | None = None, **environment: str
) -> list[BaseProcess]:
    """Starts ``headrace pretrain <arguments>`` as `world` processes that write to `log`; returns them by rank.

    Arguments that begin with a .py file run that instead.
    `fault` is (name in `FAULTS`, step, rank, further arguments ...).
    """
    shared = environment
    if world > 1:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    started = []
    for rank in range(world):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        settings = {**{key: str(value) for key, value in own.items()}, **shared}
        mine = fault if fault and fault[2] == rank else None
        process = _context.Process(target=_child, args=(list(arguments), str(log), settings, mine), daemon=True)
        process.start()
        started.append(process)
    return started


def finish(processes: list[BaseProcess], timeout: float = 120.0) -> list[int]:
    """Exit codes, negative for a signal, as soon as all have ended. Kills what is left after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def run(arguments: Sequence[str], log: Path, **options) -> list[int]:
    """`start` and `finish`."""
    return finish(start(arguments, log, **options))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(arguments: list[str], log: str, environment: dict[str, str], fault: tuple | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    from headrace.errors import run_command
    from headrace.train import pretrain

    if fault is not None:
        name, step, _, *rest = fault
        _at_step(step, FAULTS[name](*rest))
    if arguments[0].endswith(".py"):
        sys.argv = arguments
        main = partial(runpy.run_path, arguments[0], run_name="__main__")
    else:
        main = partial(pretrain.main, arguments)
    code = run_command(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)  # what an interpreter does at its end is no part of a run


def _at_step(step: int, happens: Callable) -> None:
    """`happens(batch)` before that step is taken; what it returns takes the batch's place."""
    from headrace.train.engine.step import Stepper

    true_step = Stepper.__call__

    def call(self, batch, progress):
        if progress.step == step:
            batch = happens(batch) or batch
        return true_step(self, batch, progress)

    Stepper.__call__ = call


def _signal(name: str) -> Callable:
    return lambda batch: os.kill(os.getpid(), getattr(signal, name))


def _hang(seconds: float = 3600.0) -> Callable:
    return lambda batch: time.sleep(seconds)


def _kill(delay: float) -> Callable:
    """SIGKILL, `delay` seconds after the step began."""
    return lambda batch: threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _not_a_number() -> Callable:
    def spoil(batch):
        for view in batch.views.values():
            view[:, 0] = float("nan")

    return spoil


def _clock_jump(seconds: float) -> Callable:
    """time.time() leaps, as when a clock is set."""

    def leap(batch):
        true_time = time.time
        time.time = lambda: true_time() + seconds

    return leap


def _full_disk() -> Callable:
    """The next file that grows beyond 10 kB is the last straw; after that there is space again."""

    def fill(batch):
        from headrace.train.engine import checkpoint

        true_save = checkpoint.save

        def save(*arguments):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
            try:
                return true_save(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                checkpoint.save = true_save

        checkpoint.save = save

    return fill


def _broken_read() -> Callable:
    """From now on, reading an image raises what no loader foresees."""

    def break_it(batch):
        from headrace.pipelines.loaders.base import BaseLoader

        def attempt(self, stage, index, work, argument):
            return true_attempt(self, stage, index, lambda _: 1 / 0, argument)

        true_attempt, BaseLoader._attempt = BaseLoader._attempt, attempt

    return break_it


FAULTS = {
    "signal": _signal,
    "kill": _kill,
    "hang": _hang,
    "late": _hang,
    "nan": _not_a_number,
    "clock": _clock_jump,
    "full": _full_disk,
    "read": _broken_read,
}
