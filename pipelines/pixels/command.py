"""Decode once: write the pixels of every image beside the tar that holds it. ``headrace pixels SHARDS``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time

from ...cores import cores
from ...errors import UserError
from ..images.decode import DecodeError, image_size
from ..images.rules import add_rules, use_options
from ..sharding.progress import counter, part_of
from ..sources import open_source
from ..sources.shards import ShardSource, Tar
from .layout import ALIGN, FORMATS, Request, bytes_of, first_pixel, read_sidecar
from .writer import Job, write_sidecars

_EPILOG = """\
The tars stay as they are. A loader uses the pixels when all tars of a set have them (data.pixels=auto), and they can be
deleted at any time. An interrupted run continues where it stopped when the same command is given again: finished files
are kept, and the result is the same to the byte.

rgb: 3 bytes a pixel; views are those of decoding, bit for bit.
yuv420: 1.5 bytes a pixel, chroma at half the resolution.
deep: with --channels, 2 bytes a pixel and channel; views are those of decoding, bit for bit.

Several machines: start the same command everywhere with --part 0/N ... N-1/N on a shared disk.
"""


def write_pixels(
    source: ShardSource | str | os.PathLike,
    request: Request | None = None,
    *,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> str:
    """Writes the sidecars of a set of tars that are not there yet, in `workers` threads (one a core); of every n tars
    only the i-th for a `part` (i, n). Returns a sentence on what was done.

    A sidecar that is there and is not what was asked for is made anew. Raises `UserError`, before anything is written
    where the disk is too small; then finished sidecars stay for the next run of the same.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers: must be at least 1, not {workers}")
    source = source if isinstance(source, ShardSource) else _shards(source)
    request, tars = request or Request.usual(), source.tars()
    starts = [sum(tar.samples for tar in tars[:number]) for number in range(len(tars))]
    ours = [Job(source, tars[number], starts[number]) for number in range(part[0], len(tars), part[1])]
    jobs = [job for job in ours if not _finished(job.tar, request)]
    kept = len(ours) - len(jobs)
    if progress:
        _tell(jobs, kept, request)
    began = time.monotonic()
    try:
        with counter("pixels", sum(len(job.ids) for job in jobs), progress) as count:
            bad = write_sidecars(jobs, request, workers or cores(), count)
        written = sum(job.path.stat().st_size for job in jobs)
    except OSError as fault:
        hint = "mend that and run the same again, which keeps what is finished"
        raise UserError(f"{source.root}: cannot write the pixels ({fault.strerror or fault}); {hint}") from None
    without = f"; {bad:,} images could not be decoded and have none" if bad else ""
    before = f", {kept:,} were there" if kept else ""
    return (
        f"{source.name}: {request.words}: {len(jobs):,} files of pixels, {written / 1e6:,.0f} MB, "
        f"{time.monotonic() - began:,.1f} s{before}{without}"
    )


def _shards(name: str | os.PathLike) -> ShardSource:
    source = open_source(name)
    if not isinstance(source, ShardSource):
        raise UserError(f"{source.name}: pixels lie beside tars, and this is none; `headrace shard` makes tars of it")
    return source


def _finished(tar: Tar, request: Request) -> bool:
    """Whether the sidecar is there. One that is damaged, or of other software or another tar, is not."""
    try:
        found = read_sidecar(tar)
    except UserError:
        return False
    return found is not None and found.request == request


def _tell(jobs: list[Job], kept: int, request: Request) -> None:
    """What it will take, and `UserError` if it is not there."""
    if not jobs:
        return
    folder = jobs[0].path.parent
    needed = sum(_bytes(job, request) for job in jobs)
    # what is made anew makes room only when the new one is complete
    free = shutil.disk_usage(folder).free
    tars = sum(job.tar.path.stat().st_size for job in jobs)
    done = f", {kept:,} are there already" if kept else ""
    print(
        f"{folder}: {len(jobs):,} tars of {tars / 1e6:,.0f} MB; {request.words} takes {needed / 1e6:,.0f} MB, "
        f"{free / 1e6:,.0f} MB are free{done}",
        file=sys.stderr,
        flush=True,
    )
    if needed > free:
        smaller = "--format yuv420 takes half of that, " if request.format == "rgb" else ""
        raise UserError(
            f"{folder}: needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; {smaller}--max-side takes less"
        )


def _bytes(job: Job, request: Request) -> int:
    total = first_pixel(len(job.ids))
    for index in job.ids:
        try:
            height, width = job.source.size(index) or image_size(job.source.read(index))
        except (OSError, DecodeError):
            continue
        side = max(height, width)
        if request.max_side is not None and side > request.max_side:
            height, width = (max(1, round(s * request.max_side / side)) for s in (height, width))
        total += bytes_of(request.format, height, width) + ALIGN
    return total


def main(argv: list[str] | None = None) -> int:
    """``headrace pixels``; `errors.run_command` gives `UserError` and Ctrl-C their exit codes."""
    parser = argparse.ArgumentParser(
        prog="headrace pixels",
        description=__doc__.split("``")[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("shards", help="a folder of tars, or one tar")
    add("--format", choices=FORMATS, help="(rgb; deep, with --channels)")
    add("--max-side", type=int, metavar="N", help="shrink the longer side to N pixels first, as headrace shard does")
    add("--workers", type=int, metavar="N", help="threads (one a core); any number writes the same")
    add("--part", metavar="I/N", help="write only every N-th file, from the I-th")
    add_rules(parser)
    given = parser.parse_args(argv)
    use_options(given)
    part = part_of(given.part)
    os.environ.pop("LOCAL_RANK", None)  # every part speaks for itself
    request = Request.usual(given.format, given.max_side)
    print(write_pixels(given.shards, request, workers=given.workers, part=part, progress=part[0] == 0))
    return 0
