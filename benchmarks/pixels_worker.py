"""A process of `pixels.py`: batches of one job by whichever build its PYTHONPATH names, a turn for every line it reads.

Arguments: folder of tars, job, loader, threads, batch. A line is ``seconds most``, the answer a line of JSON.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files would hide the build's

import torch  # noqa: E402

from headrace.pipelines.order import Order  # noqa: E402
from headrace.pipelines.sources import open_source  # noqa: E402
from headrace.pipelines.spec import InputSpec  # noqa: E402

try:
    from headrace.pipelines.loaders.choose import make_loader
    from headrace.pipelines.views.recipes import VIEWS
except ImportError:  # builds before 2026-11-28 have them elsewhere
    from headrace.pipelines.loaders import make_loader
    from headrace.pipelines.recipes import VIEWS


def views_of(job: str) -> tuple:
    """Those of a method by name; ``crop`` and ``two-crops`` are MoCo's crops without colours."""
    if job in ("crop", "two-crops"):
        plain = {"jitter": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0}
        return (replace(VIEWS["moco_v2"][0], count=1 + (job == "two-crops"), **plain),)
    return VIEWS[{"mae": "mae", "two-views": "moco_v2", "multicrop": "swav_2x224_6x96", "eval": "eval"}[job]]


def main(data: str, job: str, kind: str, threads: int, batch: int) -> None:
    torch.set_num_threads(threads)
    source, options = open_source(data), {}
    if any(Path(data).glob("*.pixels")):
        from headrace.pipelines.pixels.sidecars import open_pixels

        options["pixels"] = open_pixels(source, "require")
    order = Order(len(source), batch)
    loader = make_loader(source, InputSpec(views_of(job)), order, kind=kind, threads=threads, **options)
    for _ in range(2 * order.steps_per_epoch + 4 if kind == "memory" else 4):  # images in memory are decoded by then
        next(loader)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, most = line.split()
        began, cpu, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < float(seconds) and not (int(most) and images >= int(most)):
            next(loader)
            images += batch
        took, spent = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"rate": images / took, "cpu": 1e6 * spent / images}), flush=True)
    loader.close()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
