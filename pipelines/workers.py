"""Processes that work off jobs, such as shards to write: none outlives the run, and one that dies ends it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from ..errors import UserError
from .images.budget import Budget, free_memory, use_budget
from .images.rules import Rules, rules, use_rules

REPORT_SECONDS = 0.5  # between two counts from one worker


class Worker(Protocol):
    """What all jobs of a run have in common. Pickled to the processes."""

    def write(self, job: Any, report: Callable[[int], None]) -> list[tuple[int, str]]:
        """Does a job, tells `report` now and then how many images were dealt with since, and returns position and
        reason of the images that are none."""


def run_jobs(worker: Worker, jobs: Iterable[Any], workers: int, report: Callable[[int], None]) -> list[tuple[int, str]]:
    """`Worker.write` for all jobs in `workers` processes; a single one is this process. Returns all bad images.

    Raises the first `OSError` or `UserError` of a worker, and `UserError` when one dies.
    """
    if workers == 1:
        return [one for job in jobs for one in worker.write(job, report)]
    context = multiprocessing.get_context("spawn")  # fork would copy whatever threads and locks the caller has
    jobs, bad, processes, busy = iter(jobs), [], {}, set()
    share, alone = free_memory() // 2 // workers, context.Lock()
    try:
        for job in jobs:
            here, there = context.Pipe()
            processes[here] = context.Process(target=_serve, args=(there, worker, rules(), share, alone), daemon=True)
            with _ctrl_c_blocked():
                processes[here].start()
            there.close()
            here.send(job)
            busy.add(here)
            if len(processes) == workers:
                break
        while busy:
            for connection in wait(list(busy)):
                message = connection.recv()
                if isinstance(message, int):
                    report(message)
                elif isinstance(message, Exception):
                    raise message
                else:
                    bad += message
                    if (job := next(jobs, None)) is None:
                        busy.remove(connection)
                    else:
                        connection.send(job)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise UserError("a worker process was killed (short of memory?); try again with fewer workers") from None
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    return bad


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes started inside inherit the block: Ctrl-C reaches all of a terminal, and the parent alone acts on it."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, worker: Worker, decoding: Rules, share: int, alone) -> None:
    """A worker: takes jobs, sends counts and a result for each, and ends when the other side is gone. It decodes with
    `share` bytes of memory; what needs more waits for `alone`, of which all workers have one."""
    use_rules(decoding)
    use_budget(Budget(share, alone))
    try:
        while True:
            job = connection.recv()
            try:
                result = worker.write(job, connection.send)
            except (OSError, UserError) as fault:
                if isinstance(fault, (BrokenPipeError, ConnectionResetError)):
                    return
                result = fault
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def require_part(part: tuple[int, int]) -> None:
    """Raises `UserError` for an (I, N) that is none."""
    if not 0 <= part[0] < part[1]:
        raise UserError(f"--part: is one of 0/{part[1]} ... {part[1] - 1}/{part[1]}, not {part[0]}/{part[1]}")
