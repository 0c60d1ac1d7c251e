"""Tars -> a sidecar beside each. Images are decoded by threads, a few ahead of the one that writes.

A sidecar is a function of its tar, the request and the software alone, to the byte: samples lie in the tar's order
whoever decoded them when. It is written under another name, made durable, and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.budget import BYTES_PER_PIXEL, free_memory
from ..images.decode import DecodeError, TooManyPixels, image_size
from ..images.encode import shrunk
from ..images.jpeg import chroma_halved
from ..images.oversize import reduced
from ..images.rules import rules
from ..sources.shards import ShardSource, Tar
from ..views.cut import decode_fast
from ..views.finish import shrunk_deep
from .layout import HEAD, ROW, Request, aligned, first_pixel, head_bytes, sidecar_of, tar_print

_CHUNK = 1 << 20  # bytes hashed at a time
_FLUSH = 32 << 20  # bytes on their way to the disk while more is made: at the end, nobody waits for all of a file
_AHEAD = 16  # images of a thread that wait to be written; with 2, a large one or a slow disk leaves threads idle


class Job:
    """One sidecar to write: of `tar`, whose samples are those of `source` from `first` on."""

    def __init__(self, source: ShardSource, tar: Tar, first: int) -> None:
        self.source, self.tar, self.ids = source, tar, range(first, first + tar.samples)
        self.path = sidecar_of(tar.path)


def write_sidecars(jobs: Sequence[Job], request: Request, workers: int, report: Callable[[int], None]) -> int:
    """Writes the sidecars of all jobs with `workers` threads; returns how many samples have no pixels.

    Raises `OSError` where one cannot be written, `UserError` where another process writes it. What is not finished is
    then gone; what is stays.
    """
    bad = 0
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="headrace-pixels") as threads,
        ThreadPoolExecutor(1, thread_name_prefix="headrace-flush") as disk,
    ):
        coming = _decoded(jobs, request, threads, _AHEAD * workers)
        try:
            for job in jobs:
                bad += _write(job, request, coming, threads, disk, report)
        finally:
            coming.close()
    return bad


def _decoded(
    jobs: Sequence[Job], request: Request, threads: ThreadPoolExecutor, most: int
) -> Iterator[tuple[np.ndarray, int, int, int] | None]:
    """What `pixels_of` makes of every sample, in order; `most` ahead, and in no more than half of the free memory."""
    ahead: deque[tuple[int, Future]] = deque()
    held, room = 0, free_memory() // 2
    try:
        for job in jobs:
            for index in job.ids:
                size = BYTES_PER_PIXEL * _area(job.source, index) * (rules().channels or 1)
                while ahead and (len(ahead) == most or held + size > room):
                    done, future = ahead.popleft()
                    held -= done
                    yield future.result()
                held += size
                ahead.append((size, threads.submit(pixels_of, job.source, index, request)))
        while ahead:
            yield ahead.popleft()[1].result()
    finally:
        for _, future in ahead:
            future.cancel()


def _area(source: ShardSource, index: int) -> int:
    """Pixels of a sample, by its header; 0 where that is not one."""
    if (size := source.size(index)) is None:
        with suppress(OSError, DecodeError):
            size = image_size(source.read(index))
    return 0 if size is None else size[0] * size[1]


def pixels_of(source: ShardSource, index: int, request: Request) -> tuple[np.ndarray, int, int, int] | None:
    """(bytes, height, width, CRC-32) of a sample; None for one that cannot be decoded, or has 4 GiB of pixels."""
    try:
        encoded, pixels = source.read(index), None
        try:
            pixels = decode_fast(encoded)
            small = (shrunk if request.format != "deep" else shrunk_deep)(pixels, request.max_side)
        except TooManyPixels as fault:
            if request.max_side is None or request.format == "deep":
                raise
            small = np.asarray(reduced(encoded, request.max_side, fault))
    except (OSError, DecodeError):
        return None
    height, width = small.shape[:2]
    if request.format == "deep":
        flat = np.ascontiguousarray(small.transpose(2, 0, 1), "<u2").reshape(-1).view(np.uint8)
    elif request.format == "rgb":
        flat = np.ascontiguousarray(small).reshape(-1)
    else:
        from ..views.yuv import to_planes  # numba, which rgb does without

        flat = to_planes(small, chroma_halved(encoded) if small is pixels else (False, False)).flat
    return None if flat.size >> 32 else (flat, height, width, zlib.crc32(flat))


def _write(
    job: Job,
    request: Request,
    coming: Iterator,
    threads: ThreadPoolExecutor,
    disk: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> int:
    """One sidecar; `coming` gives its samples next, `disk` flushes. Returns how many have no pixels."""
    rows = np.zeros(len(job.ids), ROW)
    digest = None if job.tar.sha256 else threads.submit(tar_sha256, job.tar.path)
    with _unfinished(job.path) as file, _Flushed(file, disk) as flushed:
        offset = first_pixel(len(rows))
        for row in rows:
            found = next(coming)
            report(1)
            if found is None:
                continue
            flat, *facts = found
            row["offset"] = offset
            row["height"], row["width"], row["crc"] = facts
            _put(file, flat, offset)
            offset = aligned(offset + flat.size)
            flushed.up_to(offset)
        os.ftruncate(file, offset)
        table = rows.tobytes()
        facts = request.facts() | {"samples": len(rows), "bytes": offset, "rows": zlib.crc32(table)}
        facts["tar"] = tar_print(job.tar) | {"sha256": job.tar.sha256 or digest.result()}
        _put(file, table, HEAD)
        _put(file, head_bytes(facts), 0)
        flushed.wait()
        os.fsync(file)
    return int((rows["height"] == 0).sum())


class _Flushed:
    """A file that is flushed in the background whenever `_FLUSH` bytes more have been written to it."""

    def __init__(self, file: int, disk: ThreadPoolExecutor) -> None:
        self._file, self._disk, self._end = file, disk, 0
        self._running: Future | None = None

    def __enter__(self) -> _Flushed:
        return self

    def __exit__(self, *_) -> None:  # before the descriptor is closed, and perhaps another file's
        if self._running is not None:
            self._running.exception()

    def up_to(self, end: int) -> None:
        """Raises `OSError` where an earlier part could not be flushed."""
        if end - self._end >= _FLUSH:
            self.wait()
            self._end, self._running = end, self._disk.submit(os.fdatasync, self._file)

    def wait(self) -> None:
        if self._running is not None:
            self._running.result()


@contextmanager
def _unfinished(path: Path) -> Iterator[int]:
    """A descriptor to write to; what was written is `path` when the body ends, and gone when it fails."""
    partial = path.with_name(f".{path.name}.partial")
    file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another run is writing it; wait for that, or stop it") from None
        except OSError:  # some network disks know no locks; there, nothing but the user keeps two runs apart
            pass
        try:
            os.ftruncate(file, 0)  # what a killed run has left
            yield file
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
    finally:
        os.close(file)


def _put(file: int, data, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def tar_sha256(tar: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open(tar, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
