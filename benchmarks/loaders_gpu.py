"""Images per second of our loaders, for a GPU: ``python -m headrace.benchmarks.loaders_gpu --images DIR``.

DALI with its own choice of decoder, with the GPU's cores alone and with the GPU's JPEG engine alone, and our CPU
threads, in turn, for the jobs of `loaders.py`; then one batch again and again, which no loader can surpass. Medians
with p20 and p80, rows in the ledger ``loaders_gpu.jsonl``. What cannot run here is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import torch

from headrace.cores import cores
from headrace.errors import run_command
from headrace.kernels.commands import table
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ByteSource, InputSpec, Loader
from headrace.pipelines.views.recipes import VIEWS

from .jobs import JOBS, Synthetic
from .record import add_out, append, spread

_WARM = 4  # batches


def contenders(
    source: ByteSource, inputs: InputSpec, batch: int, device: torch.device
) -> dict[str, Callable[[], Loader]]:
    def make(kind: str, **options) -> Loader:
        kind, _ = choose_loader(source, kind, device, inputs)
        options |= {"threads": cores(), "device": device}
        return make_loader(source, inputs, Order(len(source), batch), kind=kind, **options)

    found = {"headrace dali": partial(make, "dali")}
    if device.type == "cuda":
        found["headrace dali, GPU cores"] = partial(make, "dali", hw_decoder_load=0.0)
        found["headrace dali, JPEG engine"] = partial(make, "dali", hw_decoder_load=1.0)
    found["headrace cpu"] = partial(make, "cpu")
    return found | {"synthetic": lambda: Synthetic(make("auto"))}


def rate(loader: Loader, batch: int, seconds: float, device: torch.device) -> float:
    """Images per second, finished on the device; ends the loader."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with closing(loader):
        for _ in range(_WARM):
            next(loader)
        wait()
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(loader)
            images += batch
            wait()
        return images / (time.perf_counter() - began)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m headrace.benchmarks.loaders_gpu", description=__doc__.split(":")[0]
    )
    parser.add_argument("--images", required=True, help="a folder of images or of shards, or a tar")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=["mae", "two-views", "multicrop"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    add_out(parser)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.loaders_gpu: there is no GPU here; benchmarks.loaders is for CPUs", file=sys.stderr)
        return 2
    source, device, shown = open_source(args.images), torch.device(args.device), []
    batch = min(args.batch, len(source))
    for job in args.jobs:
        makers = contenders(source, InputSpec(VIEWS[JOBS[job][0]]), batch, device)
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(args.repeat):
            for name in list(rates):
                try:
                    rates[name].append(rate(makers[name](), batch, args.seconds, device))
                except Exception as fault:  # a decoder that is not there must not end the comparison
                    print(f"skipped: {job}: {name}: {type(fault).__name__}: {str(fault)[:120]}", flush=True)
                    del rates[name]
        config = {"batch": batch, "seconds": args.seconds, "repeat": args.repeat, "images": len(source)}
        for name, found in rates.items():
            row = {"job": job, "contender": name, **spread("images_per_second", found), "config": config}
            append("loaders_gpu", row, folder=args.out)
            shown.append((job, name, f"{row['images_per_second']:,.0f}", f"{row['p20']:,.0f} - {row['p80']:,.0f}"))
    print(table(("job", "loader", "images/s", "p20 - p80"), shown))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
