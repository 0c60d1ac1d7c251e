"""All that needs a GPU, in one command and ten minutes: ``python -m headrace.benchmarks.gpu --minutes 10 --out DIR``.

Stages, most valuable first, each a process of its own with a share of the time: one that crashes or hangs is ended and
written down, and the next one runs. Rows go to ledgers in ``--out`` as they are measured, so nothing is lost when the
machine is; ``gpu.jsonl`` has a row per stage: how it ended, how long it took, and the end of what it said.

    kernels        every operator's kernels held to the reference, then beside their rivals
    steps ...      whole training steps, a stage for each of five recipes
    augmentation   views of crops on the GPU, ours and others'
    loaders        decoding for the GPU by DALI and by CPU threads
    speedrun       CIFAR-10, in what is left, if that is four minutes, where ``--cifar`` has it

``--stages`` picks some. ``--dry-run`` rehearses everything on a CPU at toy sizes, where the figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from headrace.errors import UserError, run_command

from .record import append
from .steps import ON_GPU

_TAIL = 2000  # characters of what a stage said that are kept
_END = 8.0  # seconds between asking a stage to end and its end by force, and for writing it down
_IMAGES = 512  # that are generated where none are given


class Stage(NamedTuple):
    name: str
    seconds: float  # at the most, of ten minutes
    command: Callable[[float], list[str]]  # seconds it has -> arguments of python
    needs: float = 10.0  # seconds below which it is not started


def stages(out: Path, images: str, cifar: Path | None, dry: bool = False) -> list[Stage]:
    to, module = ["--out", str(out)], lambda name, *rest: ["-m", f"headrace.benchmarks.{name}", *rest]
    steps = ["--rounds", "3", "--steps", "8", "--images", images, *to]
    augmentation, loaders, kernels = ["--repeat", "20"], [], []
    recipes, needs, of_speedrun = ON_GPU, 240.0, []
    if dry:
        recipes, needs = ("mae_vit-tiny",), 10.0
        tiny = "algorithm.backbone={name: vit_tiny, patch_size: 8, width: 24, depth: 2, heads: 2}"
        steps += ["--device", "cpu", "--batch", "2", "--rounds", "1", "--steps", "1", "algorithm.view.size=32", tiny]
        kernels = ["--tiny", "--ops", "patch_loss"]
        augmentation = ["--device", "cpu", "--views", "4", "--size", "32", "--repeat", "2"]
        loaders = ["--device", "cpu", "--jobs", "mae", "--batch", "4", "--seconds", "0.1", "--repeat", "1"]
        of_speedrun = ["--train-images", "40", "--val-images", "20", "--head-epochs", "1", "--device", "cpu"]
        small = "algorithm.backbone={name: resnet18, width: 8, small_image_stem: true}"
        of_speedrun += ["train.batch_size=8", small]
    found = [
        Stage("kernels", 200, lambda left: module("kernels", "--minutes", f"{left / 60:.3f}", *kernels, *to)),
        *(
            Stage(f"steps {recipe.partition('_')[0]}", 40, lambda _, recipe=recipe: module("steps", recipe, *steps))
            for recipe in recipes
        ),
        Stage("augmentation", 50, lambda _: module("augment_gpu", *augmentation, *to)),
        Stage("loaders", 60, lambda _: module("loaders_gpu", "--images", images, *loaders, *to)),
    ]
    if cifar is not None:
        sets = ["--train", str(cifar / "train"), "--val", str(cifar / "test")]
        minutes = lambda left: f"{min(10.0, (left - _END) / 60):.3f}"  # noqa: E731
        speedrun = lambda left: module("speedrun", *sets, "--minutes", minutes(left), *of_speedrun, *to)  # noqa: E731
        found.append(Stage("speedrun", 90 if dry else 1e9, speedrun, needs))
    return found


def run(todo: Sequence[Stage], minutes: float, out: Path) -> list[dict]:
    """Runs the stages within that time; a row for each, also in the ledger."""
    end, rows = time.monotonic() + 60 * minutes - _END, []
    out.mkdir(parents=True, exist_ok=True)
    for stage in todo:
        limit = min(stage.seconds * minutes / 10, end - time.monotonic())
        row = {
            "job": "gpu",
            "contender": stage.name,
            "outcome": "no time left",
            "seconds": 0.0,
            "limit": round(limit, 1),
        }
        if limit >= min(stage.needs, stage.seconds * minutes / 10):
            row |= attempt(stage.command(limit), limit, out / f"{stage.name.replace(' ', '-')}.log")
        append("gpu", row, folder=out)
        print(f"{stage.name:<20} {row['outcome']:<14} {row['seconds']:6.1f} s", flush=True)
        if row["outcome"] not in ("done", "no time left"):
            print("\n".join(f"    {line}" for line in row["said"].splitlines()[-4:]), flush=True)
        rows.append(row)
    return rows


def attempt(command: list[str], limit: float, log: Path) -> dict:
    """How python ended with these arguments: at the latest after `limit` seconds, with all that it started."""
    began, code = time.monotonic(), None
    with open(log, "wb") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen([sys.executable, *command], **options)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, how)
                    process.wait(_END / 2)
                except (ProcessLookupError, subprocess.TimeoutExpired):  # ended; or it does not mind being asked
                    pass
    outcome = "out of time" if code is None else "done" if code == 0 else "failed"
    said = log.read_bytes()[-_TAIL:].decode(errors="replace")
    return {"outcome": outcome, "code": code, "seconds": round(time.monotonic() - began, 2), "said": said}


def photographs(folder: Path, count: int, size: tuple[int, int] = (500, 400)) -> Path:
    """Smooth pictures with some grain, as JPEGs that are about as large and as hard to decode as photographs."""
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = rng.integers(-12, 13, (size[1], size[0], 1))
        path = folder / str(index % 8) / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.gpu", description=__doc__.split(":")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows and what the stages say")
    parser.add_argument("--images", help="photographs: a folder, shards or a tar; default: generated ones")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as images, in folders train and test; for the speedrun")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only these (steps: all that begin so)")
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU, at toy sizes")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no GPU here; --dry-run rehearses it on the CPU", file=sys.stderr)
        return 2
    if args.cifar and not ((args.cifar / "train").is_dir() and (args.cifar / "test").is_dir()):
        raise UserError(f"gpu: --cifar: {args.cifar} has no folders train and test with a folder per class")
    if args.dry_run:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # compiling takes a CPU longer than all the rest
    with tempfile.TemporaryDirectory(prefix="headrace-gpu-") as scratch:
        count = 16 if args.dry_run else _IMAGES
        images = args.images or str(photographs(Path(scratch) / "images", count))
        todo = stages(args.out, images, args.cifar, args.dry_run)
        if args.stages:
            picked = [stage for stage in todo if any(stage.name.startswith(name) for name in args.stages)]
            if not picked:
                raise UserError(f"gpu: --stages: none of {', '.join(stage.name for stage in todo)}")
            todo = picked
        rows = run(todo, args.minutes, args.out)
    return 0 if all(row["outcome"] in ("done", "no time left") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
