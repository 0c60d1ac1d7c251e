"""What commands that write data sets show while they do, and which part of the work is theirs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import UserError


@contextmanager
def counter(what: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that takes how many images were done since: a bar on a terminal, else a line every five seconds."""
    if shown and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            job = bar.add_task("", total=total)
            yield lambda images: bar.advance(job, images)
        return
    done, told, start = 0, time.monotonic(), time.monotonic()

    def line(images: int) -> None:
        nonlocal done, told
        done += images
        now = time.monotonic()
        if shown and now - told >= 5:
            rate = done / (now - start)
            print(f"{what}: {done:,} of {total:,} images, {rate:,.0f}/s", file=sys.stderr, flush=True)
            told = now

    yield line


def part_of(text: str | None) -> tuple[int, int]:
    """`I/N`, else what torchrun says, else everything."""
    text = text or f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UserError(f"--part: I/N such as 0/8, not {text!r}")
    return int(index), int(count)
