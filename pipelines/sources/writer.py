"""Shards written by worker processes: image files in, one tar with its DALI index out."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..decode import DecodeError, image_size
from . import tar
from .shards import INDEX

REPORT_SECONDS = 0.5  # between two counts from one worker


@dataclass
class ShardPlan:
    """One shard to write: `tar` and, beside it, its `.idx`."""

    tar: Path
    files: list[tuple[int, str, int]]  # position in the data set, file, label (-1: no `.cls` member)


@dataclass
class WrittenShard:
    tar: Path
    rows: np.ndarray  # of INDEX, `shard` still 0
    bytes: int
    sha256: str
    bad: list[tuple[int, str]]  # position and reason of the files that are no images


def member_name(position: int, file: str) -> tuple[str, str]:
    """Key and extension of a file in a tar: no dots in the key, and both together within ustar's 100 bytes."""
    path = Path(file)
    extension = path.suffix[1:].lower().replace("jpeg", "jpg")
    return f"{position:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', path.stem)[:80]}", extension


def write_shard(plan: ShardPlan, skip_bad: bool, report: Callable[[int], None]) -> WrittenShard:
    """Reads every file once, checks it, copies it unchanged; `report` hears how many files were dealt with since.

    Without `skip_bad`, writing ends at the first bad file and the rest is only checked. The index is DALI's text format
    v1.2: the number of samples, then for each sample ``extension offset size name`` of all its members in one line.
    """
    rows, lines, bad = [], [], []
    digest, offset, seen, told = hashlib.sha256(), 0, 0, time.monotonic()
    with open(plan.tar, "xb", buffering=1 << 20) as archive, open(plan.tar.with_suffix(".idx"), "x") as index:

        def put(name: str, data: bytes) -> int:
            nonlocal offset
            start = offset + tar.BLOCK
            for piece in (tar.header(name, len(data)), data, bytes(tar.padding(len(data)))):
                archive.write(piece)
                digest.update(piece)
            offset = start + len(data) + tar.padding(len(data))
            return start

        for position, file, label in plan.files:
            seen += 1
            if time.monotonic() - told > REPORT_SECONDS:
                report(seen)
                seen, told = 0, time.monotonic()
            try:
                with open(file, "rb", buffering=0) as image:
                    data = image.read()
                if len(data) >> 32:
                    raise DecodeError("larger than 4 GiB")
                height, width = image_size(data)
            except (OSError, DecodeError) as fault:
                bad.append((position, fault.strerror if isinstance(fault, OSError) else str(fault)))
                continue
            if bad and not skip_bad:
                continue
            key, extension = member_name(position, file)
            start = put(f"{key}.{extension}", data)
            line = f"{extension} {start} {len(data)} {key}.{extension}"
            if label >= 0:
                text = b"%d" % label
                line += f" cls {put(f'{key}.cls', text)} {len(text)} {key}.cls"
            rows.append((0, start, len(data), label, height, width))
            lines.append(line + "\n")
        archive.write(tar.END)
        digest.update(tar.END)
        index.writelines([f"v1.2 {len(lines)}\n", *lines])
    report(seen)
    return WrittenShard(plan.tar, np.array(rows, INDEX), offset + len(tar.END), digest.hexdigest(), bad)


def write_shards(
    plans: Iterable[ShardPlan], workers: int, skip_bad: bool, report: Callable[[int], None]
) -> list[WrittenShard]:
    """`write_shard` for all plans in `workers` processes; the results in the order of the plans.

    Raises the first `OSError` of a worker, and `UserError` when one dies. No process outlives the call.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy whatever threads and locks the caller has
    plans, written = enumerate(plans), {}
    processes, busy = {}, {}
    try:
        for number, plan in plans:
            here, there = context.Pipe()
            processes[here] = context.Process(target=_serve, args=(there, skip_bad), daemon=True)
            with _ctrl_c_blocked():
                processes[here].start()
            there.close()
            here.send(plan)
            busy[here] = number
            if len(processes) == workers:
                break
        while busy:
            for connection in wait(list(busy)):
                message = connection.recv()
                if isinstance(message, int):
                    report(message)
                elif isinstance(message, OSError):
                    raise message
                else:
                    written[busy.pop(connection)] = message
                    if (following := next(plans, None)) is not None:
                        busy[connection], plan = following
                        connection.send(plan)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise UserError("a worker process was killed (short of memory?); try again with fewer workers") from None
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    return [written[number] for number in sorted(written)]


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes started inside inherit the block: Ctrl-C reaches all of a terminal, and the parent alone acts on it."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, skip_bad: bool) -> None:
    """A worker: takes plans, sends counts and a result for each, and ends when the other side is gone."""
    try:
        while True:
            plan = connection.recv()
            try:
                result = write_shard(plan, skip_bad, connection.send)
            except OSError as fault:
                result = fault
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
