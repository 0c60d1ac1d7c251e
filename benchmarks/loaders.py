"""Images per second of our loaders and of others', on CPU cores: ``python -m headrace.benchmarks.loaders --data DIR``.

The same images, jobs and number of workers; each contender runs for `--seconds` at a time, in turn, `--repeat` times;
medians with the 20th and 80th percentile, and the CPU time per image of all its processes, which other work on the
machine disturbs less. Beforehand our views are held to the reference, and every peer's mean and spread to ours.
Ceilings come from the same run: reading alone, decoding alone, decoding and resizing; so does our memory loader, for
which everything is decoded beforehand.
Appends a row per contender to ``benchmarks/results/loaders.jsonl``; ``--table`` prints the last rows of each job.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from headrace.errors import UserError, run_command
from headrace.pipelines.cut import crop_and_resize, decode_fast
from headrace.pipelines.decode import image_size
from headrace.pipelines.draw import draw_views
from headrace.pipelines.loaders import choose_loader, make_loader
from headrace.pipelines.memory_loader import ArraySource
from headrace.pipelines.order import Order
from headrace.pipelines.recipes import VIEWS
from headrace.pipelines.reference import reference_views
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

from .peers import PEERS
from .record import append, read

JOBS = {"mae": "mae", "two-views": "moco_v2", "multicrop": "swav_2x224_6x96", "eval": "eval"}
OURS = ("cpu", "dali")
CEILINGS = ("read only", "decode only", "decode and resize")
DECODED = "headrace memory"  # all images decoded beforehand; it crops on one thread
_TICK = os.sysconf("SC_CLK_TCK")


class Job:
    """One job on one folder: `start(contender)` gives an endless iterator over batches."""

    def __init__(self, data: Path, views: tuple[ViewSpec, ...], workers: int, batch: int) -> None:
        self.data, self.views, self.workers, self.batch = data, views, workers, batch
        self.source, self.inputs = open_source(data), InputSpec(views)
        self.order = Order(len(self.source), batch)

    def start(self, contender: str) -> Iterator:
        if contender in PEERS:
            return PEERS[contender].load()(self.data, self.views, self.workers, self.batch)
        if contender == DECODED:
            images = [decode_fast(self.source.read(i)) for i in range(min(256, len(self.source)))]
            return self._loader("memory", ArraySource(images))
        if contender.startswith("headrace "):
            return self._loader(contender.removeprefix("headrace "), self.source)
        if contender == "decode and resize":
            return self._by_threads(self._resizer())
        return self._by_threads({"read only": self._read, "decode only": self._decode}[contender])

    def _loader(self, kind: str, source) -> Iterator:
        torch.set_num_threads(self.workers)
        order = Order(len(source), self.batch)
        with closing(make_loader(source, self.inputs, order, kind=kind, threads=self.workers)) as loader:
            for batch in loader:
                yield [copy for view in batch.views.values() for copy in view]

    def _by_threads(self, work: Callable[[int], object]) -> Iterator:
        with ThreadPoolExecutor(self.workers) as pool:
            for step in itertools.count():
                yield list(pool.map(work, self.order.ids(step).tolist()))

    def _read(self, index: int) -> int:
        return int(self.source.read(index)[::512].sum())  # every page of the file

    def _decode(self, index: int) -> np.ndarray:
        return decode_fast(self.source.read(index))

    def _resizer(self) -> Callable[[int], None]:
        """Crops are drawn beforehand, for all images at once."""
        sizes = torch.tensor([image_size(self.source.read(index)) for index in range(len(self.source))])
        params = draw_views(self.inputs, 0, 0, torch.arange(len(sizes)), sizes)
        boxes = {view.name: params[view.name].crop.transpose(0, 1).tolist() for view in self.views}

        def resize(index: int) -> None:
            image = self._decode(index)
            for view in self.views:
                out = np.empty((view.size, view.size, 3), np.uint8)
                for box in boxes[view.name][index]:
                    crop_and_resize(image, box, view.interpolation, out)

        return resize

    def check(self, contenders: Sequence[str]) -> dict[str, str]:
        """What is wrong with a contender's views, by name; nothing may be wrong with ours."""
        with closing(make_loader(self.source, self.inputs, Order(len(self.source), 8), kind="cpu")) as loader:
            batch = next(loader)
        oracle = reference_views(self.source, self.inputs, 0, 0, batch.ids)
        for view in self.views:
            error = ((batch.views[view.name] - oracle[view.name]) * torch.tensor(view.std).view(3, 1, 1) * 255).abs()
            if error.max() > 1.1:
                raise AssertionError(f"cpu: {view.name} is {error.max():.2f} grey levels from the reference")
        wrong, expected = {}, None
        for name in contenders:
            if name not in CEILINGS:
                with closing(self.start(name)) as batches:
                    found = _summary(itertools.islice(batches, 4))
                expected = expected or found
                if found[0] != expected[0] or np.abs(np.subtract(found[1], expected[1])).max() > 0.35:
                    wrong[name] = f"shapes, mean and spread are {found}, ours are {expected}"
        return wrong


def _summary(batches: Iterator[list[torch.Tensor]]) -> tuple[list[tuple[int, ...]], list[float]]:
    """Shapes of the views, and mean and standard deviation over some batches."""
    made = [[view.float() for view in batch] for batch in batches]
    values = torch.cat([view.flatten() for batch in made for view in batch])
    return [tuple(view.shape) for view in made[0]], [round(values.mean().item(), 3), round(values.std().item(), 3)]


def cpu_seconds() -> float:
    """User and system time of this process and all that it started and that still run."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(stat.parent.name)], times[int(stat.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(times.get(pid, 0) for pid in family) / _TICK


def measure(batches: Iterator, batch: int, seconds: float, warm: int = 4) -> tuple[float, float]:
    """(images per second, CPU microseconds per image) after `warm` batches; ends the iterator."""
    with closing(batches):
        for _ in range(warm):
            next(batches)
        began, cpu, images = time.perf_counter(), cpu_seconds(), 0
        while (took := time.perf_counter() - began) < seconds:
            next(batches)
            images += batch
        return images / took, 1e6 * (cpu_seconds() - cpu) / images


def run(job: Job, contenders: Sequence[str], seconds: float, repeat: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name in contenders:
            found[name].append(measure(job.start(name), job.batch, seconds))
    views = sum(view.count for view in job.views)
    figures = {}
    for name, runs in found.items():
        rates, cpu = zip(*runs)
        p20, median, p80 = np.quantile(rates, [0.2, 0.5, 0.8]).round(1).tolist()
        figures[name] = {
            "images_per_second": median,
            "p20": p20,
            "p80": p80,
            "views_per_second": round(median * views, 1),
            "cpu_us_per_image": round(float(np.median(cpu)), 1),
        }
    return figures


def table(rows: Sequence[dict]) -> str:
    """The last row of every contender and job as Markdown, jobs side by side: images/s (p20-p80), CPU us per image."""
    last = {(row["contender"], row["job"]): row for row in rows}
    jobs = [job for job in JOBS if any(key[1] == job for key in last)]
    lines = ["| | " + " | ".join(jobs) + " |", "|---|" + "---:|" * len(jobs)]
    for contender in dict.fromkeys(key[0] for key in last):
        cells = []
        for job in jobs:
            row = last.get((contender, job))
            spread = row and f"{row['images_per_second']:,.0f} ({row['p20']:,.0f}-{row['p80']:,.0f})"
            cells.append(f"{spread}, {row['cpu_us_per_image']:,.0f} us" if row else "")
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.loaders", description=__doc__.split(":")[0])
    parser.add_argument("--data", type=Path, help="a folder of images in folders of classes")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {', '.join(PEERS)}; empty: none")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contender")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="print the recorded rows as Markdown and end")
    args = parser.parse_args(argv)
    if args.table:
        print(table(read("loaders")))
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
        views = VIEWS[JOBS[name]]
        job = Job(args.data, views, args.workers, args.batch)
        ours = [f"headrace {kind}" for kind in OURS if _runs(job, kind)]
        contenders = [*ours, *peers, DECODED, *CEILINGS]
        wrong = job.check(contenders)
        for contender, fault in wrong.items():
            print(f"skipped: {contender}: {fault}")
        contenders = [contender for contender in contenders if contender not in wrong]
        figures = run(job, contenders, args.seconds, args.repeat)
        config = {"views": [dataclasses.asdict(view) for view in views], "images": len(job.source)}
        config |= {"workers": args.workers, "batch": args.batch, "seconds": args.seconds, "repeat": args.repeat}
        for contender, figure in figures.items():
            peer = PEERS.get(contender)
            row = {"job": name, "contender": contender, **figure, "config": config}
            append(
                "loaders",
                row | ({"differences": peer.differences} if peer else {}),
                (peer.distribution,) if peer else (),
            )
        rows = [{"job": name, "contender": contender, **figure} for contender, figure in figures.items()]
        print(table(rows), flush=True)
    return 0


def _runs(job: Job, kind: str) -> bool:
    """Whether that loader of ours can be used here."""
    try:
        return bool(choose_loader(job.source, kind, "cpu", job.inputs))
    except UserError as refusal:
        print(f"skipped: headrace {kind}: {refusal}")
        return False


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
