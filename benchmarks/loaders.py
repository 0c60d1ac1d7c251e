"""Images per second of our loaders and of others', on CPU cores: ``python -m headrace.benchmarks.loaders --data DIR``.

The same images, jobs and number of workers; each contender runs for `--seconds` at a time, in turn, `--repeat` times;
medians with the 20th and 80th percentile, and the CPU time per image of all its processes, which other work on the
machine disturbs less. Beforehand our views are held to the reference, and every peer's mean and spread to ours.
Ceilings come from the same run: reading alone, decoding alone, decoding and resizing, copying finished views from
memory to memory, and a loader that gives one batch again and again; so do our memory loader, for which everything is
decoded beforehand, and the cpu loader from shards with pixels beside them. In jobs with a number of pixels behind their
names all images are encoded anew at that size before, as FFCV does it, and everybody reads these bytes.

The page cache is warm; ``--cold`` measures from the disk as well, in jobs of their own (``mae-cold``), those contenders
that read the folder itself: before every turn the system is asked to forget the files, and a turn reads no file twice.

Appends a row per contender to the ledger ``loaders.jsonl``; ``--table`` prints the last rows of each job.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from headrace.cores import cores
from headrace.errors import UserError, run_command
from headrace.pipelines.loaders.choose import choose_loader
from headrace.pipelines.views.recipes import VIEWS

from .jobs import CEILINGS, DECODED, JOBS, OWN_LOOP, PIXELS, Job, shrink
from .peers import PEERS
from .record import add_out, append, read, spread

OURS = ("cpu", "dali")
_WARM = 4  # batches before the clock starts
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """User and system time of this process and all that it started and that still run."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(stat.parent.name)], times[int(stat.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(times.get(pid, 0) for pid in family) / _TICK


def measure(
    batches: Iterator, batch: int, seconds: float, warm: int = _WARM, forget: Callable | None = None, most: int = 0
) -> tuple[float, float]:
    """(images per second, CPU microseconds per image) after `warm` batches, and `forget()`; ends the iterator.

    Stops before `seconds` after `most` images, if given.
    """
    with closing(batches):
        for _ in range(warm):
            next(batches)
        if forget is not None:
            forget()
        began, cpu, images = time.perf_counter(), cpu_seconds(), 0
        while (took := time.perf_counter() - began) < seconds and not (most and images >= most):
            next(batches)
            images += batch
        return images / took, 1e6 * (cpu_seconds() - cpu) / images


def run(
    job: Job, contenders: Sequence[str], seconds: float, repeat: int, cold: bool = False
) -> dict[str, dict[str, float]]:
    """Figures by contender, of turns in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    # of one pass over the images, half is left to what is read ahead
    options = {"forget": job.forget, "most": len(job.source) // 2, "warm": 1} if cold else {}
    for _ in range(repeat):
        for name in contenders:
            found[name].append(measure(job.start(name), job.batch, seconds, **options))
    views = sum(view.count for view in job.views)
    figures = {}
    for name, runs in found.items():
        rates, cpu = zip(*runs)
        own = spread("images_per_second", rates)
        own["views_per_second"] = round(own["images_per_second"] * views, 1)
        figures[name] = own | {"cpu_us_per_image": round(float(np.median(cpu)), 1)}
    return figures


def table(rows: Sequence[dict]) -> str:
    """The last row of every contender and job as Markdown, jobs side by side: images/s (p20-p80), CPU us per image."""
    last = {(row["contender"], row["job"]): row for row in rows}
    jobs = list(dict.fromkeys(key[1] for key in last))
    lines = ["| | " + " | ".join(jobs) + " |", "|---|" + "---:|" * len(jobs)]
    for contender in dict.fromkeys(key[0] for key in last):
        cells = []
        for job in jobs:
            row = last.get((contender, job))
            spread = row and f"{row['images_per_second']:,.0f} ({row['p20']:,.0f}-{row['p80']:,.0f})"
            cells.append(f"{spread}, {row['cpu_us_per_image']:,.0f} us" if row else "")
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def from_disk(contender: str) -> bool:
    """Whether it reads the images where they lie, so that forgetting them makes it slower."""
    return not (contender in PEERS and PEERS[contender].prepare) and contender not in (DECODED, *CEILINGS[3:])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.loaders", description=__doc__.split(":")[0])
    parser.add_argument("--data", type=Path, help="a folder of images in folders of classes")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {', '.join(PEERS)}; empty: none")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contender")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cold", action="store_true", help="measure from the disk, too")
    parser.add_argument("--table", action="store_true", help="print the recorded rows as Markdown and end")
    add_out(parser)
    args = parser.parse_args(argv)
    if args.table:
        print(table(read("loaders", args.out)))
        return 0
    if args.data is None:
        raise UserError("loaders: --data is missing: a folder of images in folders of classes")
    peers = [name for name in args.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        raise UserError(f"loaders: --peers: {', '.join(sorted(unknown))} is none of {', '.join(PEERS)}")
    for name in [name for name in peers if PEERS[name].missing]:
        print(f"skipped: {name}: {PEERS[name].package} is not installed; pip install 'headrace[peers]'")
        peers.remove(name)
    for name in args.jobs:
        recipe, side = JOBS[name]
        with tempfile.TemporaryDirectory(prefix="headrace-loaders-") as folder:
            data = args.data if side is None else shrink(args.data, Path(folder) / "images", side)
            job = Job(data, VIEWS[recipe], args.workers, args.batch, Path(folder))
            compare(job, name, peers, args)
    return 0


def compare(job: Job, name: str, peers: Sequence[str], args: argparse.Namespace) -> None:
    """Checks, measures, records and prints everybody at one job."""
    ours = [f"headrace {kind}" for kind in OURS if _runs(job, kind)]
    contenders = [*ours, OWN_LOOP, *PIXELS, *peers, DECODED, *CEILINGS]
    wrong = job.check(contenders)
    for contender, fault in wrong.items():
        print(f"skipped: {contender}: {fault}")
    contenders = [contender for contender in contenders if contender not in wrong]
    config = {"views": [dataclasses.asdict(view) for view in job.views], "images": len(job.source)}
    config |= {"workers": args.workers, "batch": args.batch, "seconds": args.seconds, "repeat": args.repeat}
    config["max_side"] = JOBS[name][1]
    for cold in (False, True) if args.cold else (False,):
        label = f"{name}-cold" if cold else name
        measured = [contender for contender in contenders if not cold or from_disk(contender)]
        rows = []
        for contender, figure in run(job, measured, args.seconds, args.repeat, cold).items():
            peer = PEERS.get(contender)
            row = {"job": label, "contender": contender, **figure, "config": config}
            extra = {"differences": peer.differences} if peer else {}
            append("loaders", row | extra, (peer.distribution,) if peer else (), folder=args.out)
            rows.append(row)
        print(f"{table(rows)}\n{ratios(rows, label)}\n", flush=True)


def ratios(rows: Sequence[dict], label: str) -> str:
    """How many times as fast as each peer our first loader is, and its share of decoding alone."""
    rates = {row["contender"]: row["images_per_second"] for row in rows}
    own = rates[rows[0]["contender"]]
    over = ", ".join(f"{own / rate:.2f} x {name}" for name, rate in rates.items() if name in PEERS or name == OWN_LOOP)
    share = f"{own / rates['decode only']:.0%} of decoding alone" if "decode only" in rates else ""
    return f"{label}: {rows[0]['contender']}: " + "; ".join(filter(None, (over, share)))


def _runs(job: Job, kind: str) -> bool:
    """Whether that loader of ours can be used here."""
    try:
        return bool(choose_loader(job.source, kind, "cpu", job.inputs))
    except UserError as refusal:
        print(f"skipped: headrace {kind}: {refusal}")
        return False


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
