"""What evaluating an encoder costs: ``python -m headrace.benchmarks.evaluation``.

knn       the exact search of `headrace knn` for 50,000 queries among 1.28 million images with 2,048 features: estimated
          from a slice of the neighbours that is searched for few and for more queries, in turn, which gives the time a
          neighbour costs by itself and with each query. Memory beyond the features is measured, beside its bound.
linear    the fast sweep of `headrace linear`, fifty heads on features that are computed once, beside the published
          protocol of the same encoder for as many epochs and each of its ten learning rates, of which some steps are
          measured. Labelled images in --train and --val, or generated ones: what they show does not change the time.

Rows go to the ledger ``evaluation.jsonl``; figures called estimated_... are extrapolated from the others in the row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from headrace.errors import run_command
from headrace.models.algorithms import find_algorithm
from headrace.train.engine.distributed import ALONE, pick_device
from headrace.train.engine.metrics import read_metrics
from headrace.train.evaluation.embed import embed
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.knn import nearest
from headrace.train.evaluation.labels import labelled_sets
from headrace.train.evaluation.linear_protocols import linear_recipe, protocol_of
from headrace.train.evaluation.linear_sweep import DECAYS, RATES, sweep_heads
from headrace.train.pretrain import pretrain
from headrace.train.recipe.recipe import load_recipe

from .record import add_out, append, spread
from .steps import PeakMemory

NEIGHBOURS, QUERIES, WIDTH = 1_281_167, 50_000, 2048


def extrapolated(few: float, more: float, queries: tuple[int, int], slice_: int, neighbours: int, wanted: int) -> float:
    """Seconds of `wanted` queries among `neighbours`, from those of two numbers of queries among `slice_` of them."""
    each = (more - few) / (queries[1] - queries[0])
    return (few - queries[0] * each + wanted * each) * neighbours / slice_


def knn(slice_: int, queries: tuple[int, int], memory: float, repeat: int, device: torch.device) -> dict:
    torch.manual_seed(0)
    bank, asked = torch.randn(slice_, WIDTH), torch.randn(queries[1], WIDTH)
    peak = PeakMemory(device)
    before = peak.megabytes()
    nearest(bank, asked, 20, memory=memory, device=device)  # the first search: later ones reuse its memory
    grown = None if before is None else round(peak.megabytes() - before, 1)
    some = nearest(bank[:4096], asked[:64], 20, memory=memory, device=device)[0]
    exact = (F.normalize(asked[:64].double(), dim=1) @ F.normalize(bank[:4096].double(), dim=1).T).topk(20).values
    if (some - exact).abs().max() > 1e-5:
        raise AssertionError("the search does not find the nearest")
    taken: dict[int, list[float]] = {count: [] for count in queries}
    for _ in range(repeat):
        for count in queries:
            began = time.perf_counter()
            nearest(bank, asked[:count], 20, memory=memory, device=device)
            taken[count].append(time.perf_counter() - began)
    few, more = (statistics.median(taken[count]) for count in queries)
    hours = extrapolated(few, more, queries, slice_, NEIGHBOURS, QUERIES) / 3600
    return {
        "job": "knn",
        "contender": f"{QUERIES:,} queries among {NEIGHBOURS:,} x {WIDTH:,}",
        **spread("seconds", taken[queries[1]]),
        "seconds_few": round(few, 4),
        "estimated_hours": round(hours, 4),
        "memory_mb": grown,
        "memory_bound_mb": round(memory * 2**30 / 1e6, 1),
        "config": {"slice": slice_, "queries": queries, "k": 20, "repeat": repeat},
    }


def generated(folder: Path, count: int, side: int, classes: int = 10) -> Path:
    """Noise as JPEGs, in a folder per class."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / str(index % classes) / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return folder


def linear(recipe: str, train: str, val: str, epochs: int, steps: int, repeat: int, device, folder: Path) -> dict:
    sources = labelled_sets(train, val)
    classes, encoder = len(sources[0].classes), load_encoder(f"random:{recipe}")
    fast, features, process = [], [], replace(ALONE, device=device)
    for _ in range(repeat):
        began = time.perf_counter()
        sets = [embed(encoder.module, source, encoder.view, process=process) for source in sources]
        features.append(time.perf_counter() - began)
        sweep_heads(*sets, classes, epochs=epochs, device=device)
        fast.append(time.perf_counter() - began)
    section = load_recipe(recipe, []).algorithm
    algorithm, weights = find_algorithm(section.name)(section), folder / "encoder.safetensors"
    save_file({key: value.contiguous() for key, value in algorithm.encoder.state_dict().items()}, weights)
    options = {"train": train, "val": val, "classes": classes, "batch_size": min(256, len(sources[0]))}
    options |= {"max_steps": steps, "out": folder / "run", "device": device.type}
    published = linear_recipe(algorithm, protocol_of(algorithm), weights, **options)
    pretrain(published, process)
    rates = [row["images_per_s"] for row in read_metrics(folder / "run")[1:]]  # the first includes starting up
    epoch = len(sources[0]) / statistics.median(rates)
    seconds = statistics.median(fast)
    return {
        "job": "linear",
        "contender": f"{len(RATES) * len(DECAYS)} heads of {epochs} epochs",
        **spread("seconds", fast),
        "features_seconds": round(statistics.median(features), 3),
        "published_epoch_seconds": round(epoch, 4),
        "estimated_published_seconds": round(len(RATES) * epochs * epoch, 2),
        "estimated_speedup": round(len(RATES) * epochs * epoch / seconds, 2),
        "config": {"recipe": recipe, "protocol": protocol_of(algorithm), "epochs": epochs, "learning_rates": len(RATES)}
        | {"images": [len(source) for source in sources], "steps": steps, "repeat": repeat},
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.evaluation", description=__doc__.split(":")[0])
    parser.add_argument("--parts", nargs="+", choices=("knn", "linear"), default=("knn", "linear"))
    parser.add_argument("--slice", type=int, default=32_000, help="neighbours that are searched (%(default)s)")
    parser.add_argument("--queries", type=int, nargs=2, default=(200, 600), help="few and more (200 600)")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that the search may take (%(default)s)")
    parser.add_argument("--recipe", default="simclr_resnet18_cifar10", help="whose encoder, untrained (%(default)s)")
    parser.add_argument("--train", help="labelled images to learn from; default: 2,000 generated ones")
    parser.add_argument("--val", help="and to classify; default: 1,000")
    parser.add_argument("--images", type=int, default=2000, help="how many are generated, and half as many to classify")
    parser.add_argument("--epochs", type=int, default=20, help="of the heads and of the protocol (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of the protocol that are measured (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3)
    add_out(parser)
    args = parser.parse_args(argv)
    device = pick_device("auto")
    if "knn" in args.parts:
        row = knn(args.slice, tuple(args.queries), args.memory, args.repeat, device)
        append("evaluation", row, folder=args.out)
        print(
            f"knn: {row['contender']}: about {row['estimated_hours']:.2f} hours, "
            f"{row['memory_mb']} MB beyond the features, bound {row['memory_bound_mb']:.0f}"
        )
    if "linear" in args.parts:
        with tempfile.TemporaryDirectory(prefix="headrace-evaluation-") as name:
            folder = Path(name)
            train = args.train or str(generated(folder / "train", args.images, 32))
            val = args.val or str(generated(folder / "val", args.images // 2, 32))
            row = linear(args.recipe, train, val, args.epochs, args.steps, args.repeat, device, folder)
        append("evaluation", row, folder=args.out)
        print(
            f"linear: {row['contender']}: {row['seconds']:.2f} s; as published, for {len(RATES)} learning rates, about "
            f"{row['estimated_published_seconds']:,.0f} s: {row['estimated_speedup']:.1f} times as long"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
