"""Pixels of more bytes than memory: ``python -m headrace.benchmarks.pixels_limited --data TARS``.

A set of `--gigabytes` of yuv420 sidecars (copies of those of TARS) is read in training's own random order by a process
that may hold `--memory` gigabytes, files in the page cache included; in turns with a process that has the sidecars of
TARS alone, all in memory. Besides the rates: the group's anonymous memory after its first turn and after its last,
which must not grow, and what it read from the disk.

Linux, by root: the limit is a memory control group of its own, of version 1 or 2.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import headrace
from headrace.control_groups import GROUPS
from headrace.cores import cores
from headrace.errors import UserError, run_command
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import Request, sidecar_of

from .pixels import JOBS, Contender, forget, record
from .record import add_out


class Group:
    """A control group that may hold so many bytes, files in the page cache included. It is removed by `close`, after
    its processes have ended."""

    def __init__(self, limit: int) -> None:
        first, second = GROUPS / "memory", GROUPS
        version_1 = (first / "memory.limit_in_bytes").exists()
        self._folder = (first if version_1 else second) / f"headrace-{os.getpid()}"
        self._anonymous = "total_rss" if version_1 else "anon"
        try:
            self._folder.mkdir()
            (self._folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(
                str(limit), encoding="ascii"
            )
        except OSError as fault:
            raise UserError(f"pixels_limited: {fault.filename}: no memory control group ({fault.strerror}); be root")
        self._used = self._folder / ("memory.usage_in_bytes" if version_1 else "memory.current")

    def enter(self) -> None:
        (self._folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    def anonymous(self) -> int:
        """Bytes of processes, without files."""
        lines = (self._folder / "memory.stat").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == self._anonymous)

    def used(self) -> int:
        return int(self._used.read_text(encoding="ascii"))

    def close(self) -> None:
        self._folder.rmdir()


def disk_bytes(process: int) -> int:
    """What a process has had read from the disk."""
    lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


@contextmanager
def sets(data: Path, gigabytes: float, workers: int) -> Iterator[tuple[Path, Path]]:
    """Folders of tars with sidecars: those of `data`, and so many copies that they take `gigabytes`."""
    with tempfile.TemporaryDirectory(prefix="headrace-pixels-", dir=data.resolve().parent) as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        small.mkdir(), large.mkdir()
        tars = [small / tar.name for tar in sorted(data.glob("*.tar"))]
        for tar in tars:
            tar.symlink_to((data / tar.name).resolve())
        write_pixels(small, Request("yuv420"), workers=workers, progress=False)
        size = sum(sidecar_of(tar).stat().st_size for tar in tars)
        if (free := shutil.disk_usage(scratch).free) < gigabytes * 1.1e9:
            raise UserError(f"pixels_limited: {scratch}: {free / 1e9:.1f} GB free, needs {gigabytes * 1.1:.1f}")
        for copy in range(-int(-gigabytes * 1e9 // size)):
            for tar in tars:
                (large / f"{copy:04d}-{tar.name}").symlink_to(tar.resolve())
                shutil.copyfile(sidecar_of(tar), sidecar_of(large / f"{copy:04d}-{tar.name}"))
        forget([large])
        yield small, large


def compare(job: str, small: Path, large: Path, args: argparse.Namespace) -> None:
    here = Path(headrace.__file__).parent.parent
    group = Group(int(args.memory * 1e9))
    names = "all in memory", f"{args.gigabytes:g} GB in {args.memory:g} GB"
    contenders = [Contender(here, small, job, "cpu", args), Contender(here, large, job, "cpu", args, group.enter)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    try:
        while group.used() < 0.97 * args.memory * 1e9:  # until then nothing has to be forgotten
            contenders[1].turn(args.seconds, 0)
        first, read, images = group.anonymous(), disk_bytes(contenders[1].pid), 0.0
        for _ in range(args.repeat):
            for name, contender in zip(names, contenders, strict=True):
                found[name].append(contender.turn(args.seconds, 0))
            images += found[names[1]][-1][0] * args.seconds
        facts = {
            "anonymous_mb": [round(first / 1e6, 1), round(group.anonymous() / 1e6, 1)],
            "disk_kb_per_image": round((disk_bytes(contenders[1].pid) - read) / 1e3 / images, 1),
        }
    finally:
        for contender in contenders:
            contender.close()
        group.close()
    record(f"{job}-limited", found, names[0], args, {names[1]: facts})


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m headrace.benchmarks.pixels_limited", description=__doc__.split(":")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of tars of photos")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of sidecars (%(default)s)")
    parser.add_argument("--memory", type=float, default=4.0, help="gigabytes that training may hold (%(default)s)")
    parser.add_argument("--jobs", type=lambda text: text.split(","), default=("mae",), help=",".join(JOBS))
    parser.add_argument("--workers", type=int, default=cores(), help="threads (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="turns (%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.jobs) - set(JOBS):
        raise UserError(f"pixels_limited: --jobs: {', '.join(sorted(unknown))} is none of {', '.join(JOBS)}")
    with sets(args.data, args.gigabytes, args.workers) as (small, large):
        for job in args.jobs:
            compare(job, small, large, args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
