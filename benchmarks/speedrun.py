"""Self-supervised learning against the clock: ``python -m headrace.benchmarks.speedrun --train DIR --val DIR``.

From nothing to the k-NN and linear accuracy of an encoder in `--minutes` of wall time. The clock starts with the
process: imports, decoding, compiling, training and evaluation all count. By default BYOL with a ResNet-18 for CIFAR-10,
in bfloat16 on one GPU, all images in its memory; of the packaged methods it learns fastest over some 200 epochs.

How long evaluating takes is measured first, on a few images; the rest is for training, whose rate of learning, warm-up
and momenta follow the share of that time that has passed, not the number of steps: they reach their ends when it is up,
however fast steps are. The row in the ledger ``speedrun.jsonl`` says where the seconds went. Settings are those of the
recipe; they have not been tuned for this purpose. Ends with 1 if the result comes too late.

``--cpu-class`` is the same on two cores of a CPU, for the board (benchmarks/board.md). With ``--by lightly`` its loss,
transforms and data loader train the same encoder, with the same rates over the same time, from the files in `--train`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace import kernels
from headrace.cores import cores, take_cores
from headrace.errors import UserError, run_command
from headrace.models.algorithm import Algorithm, Progress
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import ByteSource
from headrace.pipelines.views.cut import decode_fast
from headrace.train.engine.distributed import ALONE, Launch, pick_device
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.evaluation.embed import embed, evaluation_view
from headrace.train.evaluation.knn import knn_accuracy
from headrace.train.evaluation.labels import labelled, labelled_sets
from headrace.train.evaluation.linear_sweep import sweep_heads
from headrace.train.precision import resolved
from headrace.train.recipe.recipe import Recipe, load_recipe

from .racers import SYSTEMS
from .racers.heat import Heat, Job
from .record import add_out, append
from .steps import flops

_SPARE, _LEAST = 1.15, 3.0  # of what evaluating is expected to take, and seconds, for what it may take more
_TICKS = 10_000  # of the schedule, in place of steps


class Clock:
    """Seconds since this process started, by the stage they went to."""

    def __init__(self) -> None:
        self.began, self.stages = _process_start(), {}
        self._last = self.began

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def lap(self, stage: str) -> None:
        """What has passed since the last lap belongs to `stage`."""
        now = time.monotonic()
        self.stages[stage] = round(self.stages.get(stage, 0.0) + now - self._last, 3)
        self._last = now


def _process_start() -> float:
    """On `time.monotonic`'s scale; where the system does not say, now."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.monotonic()
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    since_boot = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return time.monotonic() - max(0.0, since_boot - ticks / os.sysconf("SC_CLK_TCK"))


def decoded(source: ByteSource, count: int | None) -> ArraySource:
    """Every so many-th image of a source, `count` in all, and its labels, in memory. All are of one size."""
    count = min(count or len(source), len(source))
    ids = [index * len(source) // count for index in range(count)]
    with ThreadPoolExecutor(cores()) as pool:
        images = list(pool.map(lambda index: decode_fast(source.read(index)), ids))
    if len(shapes := {image.shape for image in images}) > 1:
        raise UserError(f"{source.name}: images of {len(shapes)} sizes; this is for sets of small images of one size")
    return ArraySource(np.stack(images), [source.label(index) for index in ids], name=source.name)


def evaluate(algorithm: Algorithm, sets: Sequence[ArraySource], epochs: int, process: Launch) -> dict[str, float]:
    """k-NN and linear accuracy of the encoder, in percent."""
    view, classes = evaluation_view(algorithm.inputs().views[0]), len(sets[0].classes)
    bank, queries = (embed(algorithm.encoder, part, view, process=process) for part in sets)
    best, _ = sweep_heads(bank, queries, classes, epochs=epochs, device=process.device)
    return {
        "knn": round(100 * knn_accuracy(bank, queries, k=20), 2),
        "knn_200": round(100 * knn_accuracy(bank, queries, k=200, temperature=0.1), 2),
        "linear": round(100 * best["top1"], 2),
    }


def expected(algorithm: Algorithm, sets: Sequence[ArraySource], epochs: int, process: Launch) -> float:
    """Seconds that `evaluate` will take: features of all images and heads for all epochs, from a twelfth of them."""
    count = min(len(sets[0]), max(256, len(sets[0]) // 12))
    few = ArraySource(sets[0].images[:count], sets[0].labels[:count])
    view, classes = evaluation_view(algorithm.inputs().views[0]), len(sets[0].classes)
    found = None
    for _ in range(2):  # the first time allocates memory and chooses kernels
        clock = [time.monotonic()]
        found = embed(algorithm.encoder, few, view, process=process)
        clock.append(time.monotonic())
        sweep_heads(found, found, classes, epochs=1, device=process.device)
        features, heads = np.diff([*clock, time.monotonic()])
    algorithm.train()
    return float(features * sum(map(len, sets)) + heads * epochs * len(sets[0])) / count


class Training:
    """Steps of a recipe, with a schedule over time."""

    def __init__(self, recipe: Recipe, algorithm: Algorithm, source: ArraySource, process: Launch) -> None:
        train, self.device, self.step = recipe.train, process.device, 0
        precision = resolved(train.precision, process)
        bf16 = precision == "bf16" and self.device.type == "cuda"
        options = {"seed": train.seed, "device": self.device, "dtype": torch.bfloat16 if bf16 else torch.float32}
        order = Order(len(source), train.batch_size, seed=train.seed)
        self.loader = make_loader(source, algorithm.inputs(), order, kind="memory", **options)
        schedules = Schedules(recipe.optim, train.batch_size, _TICKS, _TICKS // 100)
        options = {"precision": precision, "clip_grad": recipe.optim.clip_grad}
        optimizer = build_optimizer(algorithm, recipe.optim)
        self.stepper = Stepper(algorithm, algorithm, optimizer, schedules, **options)
        self.steps_per_epoch = self.loader.steps_per_epoch

    @property
    def waited(self) -> float:
        """Seconds spent waiting for batches."""
        return self.loader.stats().wait_seconds

    def take(self, steps: int, passed: float = 0.0) -> None:
        """Takes steps where a share `passed` of the time has passed, and waits for the device."""
        progress = Progress(min(int(passed * _TICKS), _TICKS - 1), _TICKS, _TICKS // 100)
        for _ in range(steps):
            self.stepper(next(self.loader), progress)
            self.step += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, left: Callable[[], float]) -> None:
        """Steps as long as `left()`, seconds, is positive. Raises `UserError` where none is left at the start."""
        whole = left()
        if whole <= 0:
            raise UserError("speedrun: no time is left to train; give more --minutes, or fewer --train-images")
        at_once = 10 if self.device.type == "cuda" else 1  # between two looks at the clock
        while (seconds := left()) > 0:
            self.take(at_once, 1 - seconds / whole)


class PeerTraining(Training):
    """A peer's steps around the encoder of `algorithm`: its own loss, transforms and loading of a folder's images, in
    our precision."""

    waited = 0.0

    def __init__(self, recipe: Recipe, algorithm: Algorithm, folder: Path, images: int, name: str) -> None:
        self.device, self.step, batch = torch.device("cpu"), 0, recipe.train.batch_size
        job = Job(recipe.algorithm.name, recipe.name, batch, algorithm.inputs().views[0].size, recipe.name)
        self.racer = SYSTEMS[name].load(job.method)(Heat(job, recipe, folder, cores(), algorithm.encoder))
        self.loader, self.steps_per_epoch = self._timed(self.racer.batches), images // batch
        self.schedules = Schedules(recipe.optim, batch, _TICKS, _TICKS // 100)
        self.bf16 = resolved(recipe.train.precision, ALONE) == "bf16"
        for group in self.racer.optimizer.param_groups:
            group |= {"lr_scale": 1.0, "fixed_lr": False, "scheduled_decay": False}

    def _timed(self, batches: Iterator) -> Iterator:
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            yield batch

    def stepper(self, batch: Any, progress: Progress) -> None:
        self.schedules.apply(self.racer.optimizer, progress.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            self.racer.step(batch)


def run(
    recipe: Recipe, paths: tuple[str, str], counts: tuple, budget: float, epochs: int, process: Launch, by: str
) -> dict:
    """Everything after the start, in `budget` seconds of the process's life; the row. `by`: the system that trains."""
    clock = Clock()
    clock.lap("start")
    sets = [decoded(labelled(source), count) for source, count in zip(labelled_sets(*paths), counts)]
    clock.lap("decode")
    kernels.configure(recipe.kernels)
    torch.manual_seed(recipe.train.seed)
    torch.backends.cudnn.benchmark = True
    algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    algorithm = algorithm.to(process.device, memory_format=torch.channels_last).train()
    algorithm.prepare(len(sets[0]))
    evaluation = _LEAST + _SPARE * expected(algorithm, sets, epochs, process)
    clock.lap("time evaluation")
    if by == "headrace":
        training = Training(recipe, algorithm, sets[0], process)
    else:
        training = PeerTraining(recipe, algorithm, Path(paths[0]), len(sets[0]), by)
    with closing(training.loader):
        counted = flops(lambda: training.take(1))
        if recipe.train.compile:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled is slower, but does not end the run
            algorithm.compile()
        training.take(3)
        clock.lap("compile")
        waited, first, began = training.waited, training.step, time.monotonic()
        training.run(lambda: budget - evaluation - clock.seconds)
        seconds = time.monotonic() - began
        waited = training.waited - waited
    clock.lap("training")
    figures = evaluate(algorithm, sets, epochs, process)
    clock.lap("evaluation")
    images = (training.step - first) * recipe.train.batch_size
    views = sum(view.count for view in algorithm.inputs().views)
    return {
        "contender": recipe.name if by == "headrace" else f"{by} {recipe.algorithm.name}",
        **figures,
        "seconds": round(clock.seconds, 2),
        "budget": budget,
        "in_time": clock.seconds <= budget,
        "stages": clock.stages,
        "steps": training.step,
        "epochs": round(training.step / training.steps_per_epoch, 2),
        "views_per_second": round(images * views / seconds, 1),
        "tflops": round(counted * (training.step - first) / seconds / 1e12, 3),
        "data_wait": round(waited / seconds, 4),
        "images": [len(part) for part in sets],
        "seed": recipe.train.seed,
        "config": {"recipe": recipe.plain(), "head_epochs": epochs},
    }


def check_peer(args: argparse.Namespace) -> None:
    """Raises `UserError` for what a peer cannot do."""
    if SYSTEMS[args.by].missing:
        raise UserError(f"speedrun: --by {args.by}: is not installed; pip install 'headrace[peers]'")
    if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()):
        raise UserError(f"speedrun: --by {args.by}: peers train on the CPU; add --cpu-class")
    if args.train_images or not Path(args.train).is_dir():
        fault = f"--train must be a folder, without --train-images: all its images are used; not {args.train}"
        raise UserError(f"speedrun: --by {args.by}: {fault}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.speedrun", description=__doc__.split(":")[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the recipe")
    parser.add_argument("--train", required=True, help="labelled images of one size, such as CIFAR-10's, as JPEGs")
    parser.add_argument("--val", required=True, help="labelled images of the same classes to classify")
    parser.add_argument("--minutes", type=float, default=10, help="of wall time, for everything (%(default)s)")
    parser.add_argument("--recipe", default="byol_resnet18_cifar10", help="%(default)s")
    parser.add_argument("--train-images", type=int, help="how many are used; default: all")
    parser.add_argument("--val-images", type=int, help="how many are used; default: all")
    parser.add_argument("--head-epochs", type=int, default=50, help="of the linear classifiers (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cpu-class", action="store_true", help="on two cores of a CPU, for the board")
    parser.add_argument("--by", choices=("headrace", "lightly"), default="headrace", help="who trains (%(default)s)")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.cpu_class:
        try:
            take_cores(2)
        except ValueError as fault:
            raise UserError(f"speedrun: --cpu-class: {fault}") from None
        torch.set_num_threads(2)
        args.device = "cpu"
    if args.by != "headrace":
        check_peer(args)
    if args.minutes <= 0:
        raise UserError(f"speedrun: --minutes: must be positive, not {args.minutes:g}")
    process = replace(ALONE, device=pick_device(args.device))
    own = ["optim.warmup=0.05", f"train.compile={str(process.device.type == 'cuda').lower()}"]
    recipe = load_recipe(args.recipe, [*own, *args.overrides])
    if args.by != "headrace" and recipe.algorithm.name not in (methods := SYSTEMS[args.by].sprints):
        name = recipe.algorithm.name
        raise UserError(f"speedrun: --by {args.by}: trains {', '.join(methods)} here, not {name}; another --recipe")
    counts = args.train_images, args.val_images
    row = run(recipe, (args.train, args.val), counts, 60 * args.minutes, args.head_epochs, process, args.by)
    row["contender"] = " ".join([row["contender"], *(text for text in args.overrides if "train.seed=" not in text)])
    row["job"] = "cpu-class" if args.cpu_class else "speedrun"
    append("speedrun", row, folder=args.out)
    print(f"k-NN {row['knn']:.1f} %, linear {row['linear']:.1f} % after {row['seconds']:.0f} s of {row['budget']:.0f}")
    print(f"{row['epochs']:g} epochs, {row['views_per_second']:,.0f} views/s, {row['tflops']:.1f} TFLOP/s; ", end="")
    print("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages"].items()))
    return 0 if row["in_time"] else 1


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
