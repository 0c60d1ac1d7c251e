"""Whole training steps, with and without their data: ``python -m headrace.benchmarks.steps [RECIPE] --images DIR``.

A step is what training takes: a batch from the loader, forward, backward, guard, clip, update. The same weights run
with ``data=synthetic``, one batch again and again, and ``data=real``, and with every operator's reference
implementation and what is chosen automatically; `--rounds` rounds of `--steps` steps in turn. Each row has images/s
with p20 and p80, the share of the time spent waiting for data, peak memory (on CPUs that of the process), and the share
of the hardware's peak: floating-point operations of the matrix products and convolutions of a step, counted on the
reference implementation, over what the device does in a large matrix product of the same precision, the best of those
measured before, between and after.

Rates of learning are all but zero, so that every step does the same work. Without a GPU small recipes are the default.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headrace import kernels
from headrace.cores import cores
from headrace.errors import UserError, run_command
from headrace.kernels import bench
from headrace.kernels.commands import table
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import ByteSource, Loader
from headrace.train.engine.distributed import pick_device
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.recipe.recipe import Recipe, load_recipe

from .jobs import Synthetic
from .record import add_out, append, spread

ON_GPU = (
    "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k",
    "simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px",
    "mixmim_mixmim-base_16xb128-amp-coslr-600e_in1k",
    "mae-hivit_hivit-base-p16_8xb512-amp-coslr-400e_in1k",
    "simclr_resnet50_8xb32-coslr-200e_in1k",
)
ON_CPU = ("mae_vit-tiny", "simclr_resnet18", "simmim_vit-small-64px", "mixmim_mixmim-small-128px")
DATA, KERNELS = ("synthetic", "real"), ("reference", "auto")
_WARM = 3  # steps: memory is allocated and kernels are chosen
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """A recipe's model, optimizer and loaders on one device."""

    def __init__(self, recipe: Recipe, device: torch.device, source: ByteSource | None, compiled: bool = False) -> None:
        self.recipe, self.device, self.batch = recipe, device, recipe.train.batch_size
        kernels.configure(recipe.kernels)
        algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
        algorithm = algorithm.to(device, memory_format=torch.channels_last).train()
        self.loaders: dict[str, Loader] = {}
        made = self._loader(source or _noise(self.batch), algorithm.inputs())
        if source is not None:
            self.loaders["real"] = made
            made = self._loader(source, algorithm.inputs())
        algorithm.prepare(len(source) if source is not None else self.batch)
        self.loaders["synthetic"] = Synthetic(made)
        optimizer = build_optimizer(algorithm, recipe.optim)
        schedules = Schedules(replace(recipe.optim, lr=1e-30), self.batch, 1000, 1000)
        options = {"precision": recipe.train.precision, "clip_grad": recipe.optim.clip_grad}
        self.stepper = Stepper(algorithm, algorithm, optimizer, schedules, **options)
        self.choose("reference")
        self.step_flops = flops(lambda: self.take(self.loaders["synthetic"], 1))
        if compiled:
            algorithm.compile()

    def _loader(self, source: ByteSource, inputs) -> Loader:
        self.kind, _ = choose_loader(source, "auto", self.device, inputs)
        bf16 = self.recipe.train.precision == "bf16" and self.device.type == "cuda"
        options = {"threads": cores(), "dtype": torch.bfloat16 if bf16 else torch.float32, "device": self.device}
        return make_loader(source, inputs, Order(len(source), self.batch), kind=self.kind, **options)

    def choose(self, which: str) -> None:
        """The implementations of the operators: all references, or the recipe's own choices."""
        kernels.configure({**self.recipe.kernels, **({"all": "reference"} if which == "reference" else {})})

    def take(self, loader: Loader, steps: int) -> tuple[float, float]:
        """Takes steps; returns (seconds, seconds of them that were spent waiting for data)."""
        _wait(self.device)
        waited, began = loader.stats().wait_seconds, time.perf_counter()
        for _ in range(steps):
            self.stepper(next(loader), Progress(0, 1000, 1000))
        _wait(self.device)
        return time.perf_counter() - began, loader.stats().wait_seconds - waited

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()


def _noise(count: int) -> ArraySource:
    return ArraySource(np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8), name="noise")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that `work()` runs, backward included."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # other backends are not all counted
        work()
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float:
    """Per second, in the product of two square matrices: 8192 on a side on a GPU, 2048 on CPUs."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(_DTYPES[precision]) for _ in range(2))
    return 2 * side**3 / (bench.measure(lambda: a @ b, device.type, milliseconds=300).p20 * 1e-6)


class PeakMemory:
    """Megabytes at the most since it was made: allocated on a GPU, else resident in this process (None: unknown)."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        except OSError:  # no Linux, or not allowed: then it is the peak of the process's life
            pass

    def megabytes(self) -> float | None:
        if self._gpu:
            return torch.cuda.max_memory_allocated() / 1e6
        status = Path("/proc/self/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        return next((float(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM")), None)


def measure(run: Run, data: Sequence[str], which: Sequence[str], steps: int, rounds: int) -> Iterator[dict]:
    """A row's figures for every pair of data and kernels, which take turns. One that fails is named and left out."""
    variants = list(itertools.product(data, which))
    found: dict[tuple[str, str], list[tuple[float, float, float | None]]] = {variant: [] for variant in variants}
    for turn in range(rounds + 1):
        for source, chosen in variants:
            if (source, chosen) not in found:
                continue
            memory = PeakMemory(run.device)
            try:
                run.choose(chosen)
                seconds, waited = run.take(run.loaders[source], steps if turn else _WARM)
            except Exception as fault:  # references take more memory than kernels
                print(f"{run.recipe.name}: {source}, {chosen}: {type(fault).__name__}: {fault}", file=sys.stderr)
                del found[source, chosen]
                continue
            if turn:  # the first warms up
                found[source, chosen].append((seconds, waited / seconds, memory.megabytes()))
    for (source, chosen), taken in found.items():
        seconds, waits, peaks = zip(*taken)
        yield {
            "job": run.recipe.name,
            "contender": f"{source} data, {chosen} kernels",
            **spread("images_per_second", [steps * run.batch / each for each in seconds]),
            "step_ms": round(1e3 * statistics.median(seconds) / steps, 3),
            "data_wait": round(statistics.median(waits), 4),
            "peak_mb": None if None in peaks else round(max(peaks), 1),
        }


def rated(row: dict, peak: float) -> dict:
    """A row with its share of the peak, in operations per second."""
    fraction = row["step_gflop"] * 1e9 / (row["step_ms"] * 1e-3) / peak
    return {**row, "peak_tflops": round(peak / 1e12, 4), "flops_fraction": round(fraction, 4)}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.steps", description=__doc__.split(":")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE | section.key=value", help="and what to change in all")
    parser.add_argument("--images", help="a folder of images or of shards for data=real")
    parser.add_argument("--data", nargs="+", choices=DATA, help="default: both, where there are --images")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, help="default: both on a GPU, auto on a CPU")
    parser.add_argument("--batch", type=int, help="images of a step (128 on a GPU, 16 on CPUs)")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=_DTYPES, help="default: bf16 on a GPU, fp32 on CPUs")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the forward, as train.compile")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    if args.data and "real" in args.data and not args.images:
        raise UserError("steps: --data real: needs --images, a folder of images or of shards")
    data = args.data or (DATA if args.images else DATA[:1])
    which = args.kernels or (KERNELS if on_gpu else KERNELS[1:])
    overrides = [word for word in args.recipes if "=" in word]
    names = [word for word in args.recipes if "=" not in word] or (ON_GPU if on_gpu else ON_CPU)
    precision = args.precision or ("bf16" if on_gpu else "fp32")
    fixed = [f"train.batch_size={args.batch or (128 if on_gpu else 16)}", f"train.precision={precision}"]
    recipes = [load_recipe(name, [*fixed, *overrides]) for name in names]
    source = open_source(args.images) if args.images else None
    peak, failed, done = peak_flops(device, precision), 0, []
    for recipe in recipes:
        try:
            done += one(recipe, device, source if "real" in data else None, data, which, args)
        except Exception as fault:  # memory that does not suffice for one recipe must not end the others
            print(f"{recipe.name}: {type(fault).__name__}: {fault}", file=sys.stderr)
            failed += 1
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        peak = max(peak, peak_flops(device, precision))
    rows = [rated(row, peak) for row in done]
    for row in rows:
        append("steps", row, folder=args.out)
    print(as_table(rows))
    return 1 if failed else 0


def one(recipe, device, source, data, which, args) -> list[dict]:
    """All rows of one recipe, but for the share of the peak."""
    with closing(Run(recipe, device, source, args.compile)) as run:
        rows = list(measure(run, data, which, args.steps, args.rounds))
        counted = {"step_gflop": round(run.step_flops / 1e9, 3), "precision": recipe.train.precision}
        config = {"recipe": recipe.plain(), "steps": args.steps, "rounds": args.rounds, "compile": args.compile}
        config |= {"batch": run.batch, "loader": run.kind, "images": len(source) if source is not None else 0}
        return [row | counted | {"config": config} for row in rows]


def as_table(rows: Sequence[dict]) -> str:
    header = ("recipe", "", "images/s", "p20 - p80", "ms a step", "waiting", "peak MB", "GFLOP a step", "of peak")
    cells = [
        (
            row["job"],
            row["contender"],
            f"{row['images_per_second']:,.1f}",
            f"{row['p20']:,.1f} - {row['p80']:,.1f}",
            f"{row['step_ms']:.1f}",
            f"{row['data_wait']:.1%}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}",
            f"{row['step_gflop']:,.1f}",
            f"{row['flops_fraction']:.1%}",
        )
        for row in rows
    ]
    return table(header, cells)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
