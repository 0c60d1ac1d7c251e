"""How it scales, 1..n processes, 1..n threads, 10^3..10^9 samples: ``python -m headrace.benchmarks.scaling --data X``.

threads     images/s of the CPU loader with 1..n threads, in turn, on two views of MoCo v2
processes   images/s of training a small recipe with 1..n processes, the batch of a process staying the same
order       of 10^3..10^9 samples: time and memory to make one and for one rank's ids of a step, of 1,024 ranks
index       of 10^3..10^7 samples in shards of 10,000 (and of ImageNet-21k's 14.2 million): bytes a sample, seconds and
            memory to open it, in a process of its own; the shards are empty files of the right size

Rows go to the ledger ``scaling.jsonl``. Ends with 1 where the index of 14.2 million samples takes more than 10 s,
600 MB or 32 bytes a sample.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from headrace.cores import cores
from headrace.errors import UserError, run_command
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order, shard_sizes
from headrace.pipelines.plan.mixture import MixedOrder, Part
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.mapped import INDEX
from headrace.pipelines.sources.shards import FORMAT, INDEX_FILE, MANIFEST, VERSION, ShardSource
from headrace.pipelines.spec import InputSpec
from headrace.pipelines.views.recipes import VIEWS
from headrace.train.engine.metrics import read_metrics

from . import processes
from .record import add_out, append, spread

_SHARES = (0.5, 0.3, 0.2)
PARTS = ("threads", "processes", "order", "index")
IMAGENET_21K = 14_200_000
_PER_SHARD, _BYTES = 10_000, 110_000
_RANKS, _GLOBAL_BATCH = 1024, 65_536
_LIMITS = {"seconds": 10.0, "resident_mb": 600.0, "bytes_per_sample": 32.0}  # of the index of ImageNet-21k


def threads(data: Path, counts: Sequence[int], seconds: float, repeat: int, batch: int) -> Iterator[dict]:
    """Rows of the CPU loader by number of threads."""
    source, inputs = open_source(data), InputSpec(VIEWS["moco_v2"])
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeat):
        for count in counts:
            with closing(make_loader(source, inputs, Order(len(source), batch), kind="cpu", threads=count)) as loader:
                for _ in range(4):
                    next(loader)
                began, images = time.perf_counter(), 0
                while (took := time.perf_counter() - began) < seconds:
                    next(loader)
                    images += batch
            rates[count].append(images / took)
    yield from _scaled("loader threads", "images_per_second", rates)


def training(data: Path, counts: Sequence[int], recipe: str, overrides: Sequence[str], steps: int) -> Iterator[dict]:
    """Rows of whole runs by number of processes: images/s of every logging step but the first."""
    rates = {}
    with tempfile.TemporaryDirectory(prefix="headrace-scaling-") as folder:
        for world in counts:
            out = Path(folder, str(world))
            given = {"data.train": data, "train.out": out, "train.max_steps": steps, "train.log_every": 2}
            given |= {"train.batch_size": 16 * world, "train.save_every": steps}
            arguments = [recipe, *(f"{key}={value}" for key, value in given.items()), *overrides]
            codes = processes.finish(processes.start(arguments, Path(folder, f"{world}.log"), world=world), timeout=600)
            if codes != [0] * world:
                said = Path(folder, f"{world}.log").read_text(encoding="utf-8").splitlines()[-5:]
                raise UserError(f"scaling: {world} processes ended with {codes}:\n" + "\n".join(said))
            rates[world] = [row["images_per_s"] for row in read_metrics(out)[1:]]
    yield from _scaled("training processes", "images_per_second", rates)


def _scaled(job: str, figure: str, values: dict[int, list[float]]) -> Iterator[dict]:
    """Rows by number, each with its rate over that of the smallest, and that over the ideal."""
    first = min(values)
    for count, found in values.items():
        gain = float(np.median(found) / np.median(values[first]))
        row = {"job": job, "contender": str(count), **spread(figure, found)}
        yield row | {"gain": round(gain, 3), "efficiency": round(gain * first / count, 3)}


def order(sizes: Sequence[int], repeat: int) -> Iterator[dict]:
    """Rows by number of samples: a rank's ids of a step, with the full shuffle, in blocks of 10,000, of three sets of
    so many samples each at shares of 0.5, 0.3 and 0.2."""
    for samples in sizes:
        for blocks in (None, _PER_SHARD, _SHARES):
            whole = min(_GLOBAL_BATCH, samples // _RANKS * _RANKS) or samples
            world = _RANKS if whole >= _RANKS else 1
            times, before = [], resident()
            for turn in range(repeat):
                clock = [time.perf_counter()]
                if blocks is _SHARES:
                    parts = tuple(Part(str(i), samples, ((0, share),)) for i, share in enumerate(_SHARES))
                    reading = MixedOrder(parts, whole, seed=turn)
                else:
                    reading = Order(samples, whole, seed=turn, blocks=blocks)
                for step in range(3):
                    clock.append(time.perf_counter())
                    reading.ids(step % reading.steps_per_epoch, world - 1, world)
                times.append(np.diff([*clock, time.perf_counter()]) * 1e3)
            made, first, _, later = np.array(times).T
            name = "full shuffle" if blocks is None else "three sets" if blocks is _SHARES else f"blocks of {blocks:,}"
            row = {"job": "order", "contender": f"{samples:,} samples, {name}", **spread("ids_ms", later)}
            # of blocks, an epoch's first step makes the table of them
            row |= {"first_ids_ms": round(float(np.median(first)), 3), "open_ms": round(float(np.median(made)), 4)}
            row["resident_mb"] = round(max(0, resident() - before) / 1e6, 1)
            yield row | {"samples": samples, "ranks": world, "ids": whole // world}


def write_index(folder: Path, samples: int) -> None:
    """A data set whose shards are holes of the right size."""
    index = np.lib.format.open_memmap(folder / INDEX_FILE, "w+", INDEX, (samples,))
    for start in range(0, samples, 1 << 22):
        number, rows = np.arange(start, min(start + (1 << 22), samples)), index[start : start + (1 << 22)]
        rows["shard"], rows["offset"] = number // _PER_SHARD, 512 + number % _PER_SHARD * (_BYTES + 1024)
        rows["size"], rows["label"], rows["height"], rows["width"] = _BYTES, number % 21_841, 375, 500
    index.flush()
    size = 512 + min(samples, _PER_SHARD) * (_BYTES + 1024)
    count = -(-samples // _PER_SHARD)
    shards = [{"name": f"train-{shard:06}.tar", "samples": _PER_SHARD, "bytes": size} for shard in range(count)]
    for shard in shards:
        with open(folder / shard["name"], "wb") as file:
            file.truncate(size)
    classes = [f"n{label:08}" for label in range(21_841)]
    manifest = {"format": FORMAT, "version": VERSION, "samples": samples, "classes": classes, "label_source": "folder"}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"shards": shards}), encoding="utf-8")


def resident() -> int:
    """Bytes of this process in memory, pages of the mapped index among them: those are shared between processes."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open(folder: str, results) -> None:
    """Puts (seconds to open, bytes that took, seconds of `shard_sizes`, of a rank's ids by shards)."""
    before, times = resident(), [time.perf_counter()]
    source = ShardSource(folder)
    times.append(time.perf_counter())
    grown = resident() - before
    blocks = shard_sizes(source)
    times.append(time.perf_counter())
    if len(source) >= _GLOBAL_BATCH:
        Order(len(source), _GLOBAL_BATCH, blocks=blocks).ids(0, _RANKS - 1, _RANKS)
    times.append(time.perf_counter())
    results.put((grown, *np.diff(times).tolist()))


def index(sizes: Sequence[int], repeat: int) -> Iterator[dict]:
    """Rows by number of samples."""
    context = multiprocessing.get_context("spawn")
    for samples in sizes:
        with tempfile.TemporaryDirectory(prefix="headrace-scaling-") as name:
            write_index(Path(name), samples)
            per_sample = (Path(name) / INDEX_FILE).stat().st_size / samples
            found = []
            for _ in range(repeat):
                results = context.Queue()
                process = context.Process(target=_open, args=(name, results))
                process.start()
                found.append(results.get(timeout=300))
                process.join()
        grown, opening, blocks, ids = np.array(found).T
        row = {"job": "index", "contender": f"{samples:,} samples", **spread("seconds", opening)}
        row |= {"resident_mb": round(float(np.median(grown)) / 1e6, 1), "bytes_per_sample": round(per_sample, 2)}
        row |= {"shard_sizes_ms": round(1e3 * float(np.median(blocks)), 2), "samples": samples}
        yield row | {"ids_by_shards_ms": round(1e3 * float(np.median(ids)), 2)}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.scaling", description=__doc__.split(":")[0])
    most = torch.cuda.device_count() or cores()
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the recipe for processes")
    parser.add_argument("--data", type=Path, help="a folder of images or of shards; threads and processes need it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, nargs="+", default=list(range(1, cores() + 1)))
    parser.add_argument("--processes", type=int, nargs="+", default=list(range(1, most + 1)))
    parser.add_argument("--recipe", default="simclr_resnet18", help="for processes (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="of a run with processes")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn with threads")
    parser.add_argument("--batch", type=int, default=64, help="with threads")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--largest", type=int, default=9, help="exponent of ten: samples of the largest order")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.data is None and (missing := {"threads", "processes"} & set(args.parts)):
        raise UserError(f"scaling: --data: {' and '.join(sorted(missing))} need images; or give --parts order index")
    powers = [10**exponent for exponent in range(3, args.largest + 1)]
    indexed = [size for size in powers if size <= 10**7] + [IMAGENET_21K] * (args.largest >= 7)
    parts = {
        "threads": lambda: threads(args.data, args.threads, args.seconds, args.repeat, args.batch),
        "processes": lambda: training(args.data, args.processes, args.recipe, args.overrides, args.steps),
        "order": lambda: order(powers, args.repeat),
        "index": lambda: index(indexed, args.repeat),
    }
    plain = {key: value for key, value in vars(args).items() if key not in ("data", "out")}
    beyond = []
    for part in args.parts:
        for row in parts[part]():
            append("scaling", row | {"config": plain}, folder=args.out)
            figures = ", ".join(f"{key} {value:,}" for key, value in row.items() if isinstance(value, int | float))
            print(f"{row['job']:<20} {row['contender']:<36} {figures}", flush=True)
            if part == "index" and row["samples"] == IMAGENET_21K:
                beyond = [key for key, limit in _LIMITS.items() if row[key] > limit]
    if beyond:
        print(f"scaling: the index of {IMAGENET_21K:,} samples is beyond its limits: {', '.join(beyond)}")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
