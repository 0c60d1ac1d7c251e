"""Gram anchoring: ``python -m headrace.benchmarks.gram``. Do maps of patches that have decayed recover with it?

A small DINOv3 learns from images of the demo: its maps are the early ones. Then it goes on without the loss of masked
patches, by class tokens alone, and at a high rate, so that maps decay: what takes long runs of large models is planted
here. From there it goes on at a lower rate, still by class tokens alone, once as it is and once with Gram anchoring to
the early encoder, in steps and otherwise equal. Of each encoder: patches of the demo's held-out images by their nearest
patches (`headrace dense-knn`), whose classes are the backdrop and the pieces on it; mean IoU in percent, for each of
`--seeds`. Which of five shapes a piece has, single patches of such encoders do not tell.

What is finished lies in `--work`: an interrupted benchmark goes on there. A row for each goes to the ledger
``gram.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headrace.errors import run_command
from headrace.tools.demo_images import masked_demo_image, write_demo_images
from headrace.train import pretrain
from headrace.train.evaluation.evaluate import positive
from headrace.train.patches import knn

from .contender_tables import last_run
from .ledger import NOT_YET, Row, about, lines
from .record import add_out, append

RECIPE = "dinov3_vit-tiny-64px"
SMALLER = ("algorithm.backbone.width=64", "algorithm.backbone.depth=3", "algorithm.backbone.heads=2")
SMALLER += ("algorithm.hidden=256", "algorithm.bottleneck=64", "algorithm.prototypes=256", "algorithm.small.count=1")
SMALLER += ("algorithm.patch_head={hidden: 256, bottleneck: 64, prototypes: 256}",)
SMALLER += ("train.precision=fp32", "data.loader=cpu")
EARLY = ("optim.lr=5e-4", "optim.final_lr=2e-4", "optim.warmup=0.2")  # at 2e-3 no loss leaves that of equal shares
LATER = ("algorithm.patch_weight=0.0", "algorithm.momentum=0.9", "algorithm.teacher_temperature_from=0.07")
LATER += ("optim.frozen=[]",)  # the heads have learned
UNTRAINED, BEFORE, DECAYED, WITHOUT, WITH = "untrained", "early", "decayed", "without Gram", "with Gram"


def write_masks(folder: Path, split: str, count: int, seed: int = 0) -> None:
    """The demo's images with masks, as ADE20K lays them out: 1 the backdrop, 2 the pieces on it."""
    name = {"train": "training", "val": "validation"}[split]
    for part in ("images", "annotations"):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture, _, covered = masked_demo_image(seed, split, index)
        picture.save(folder / "images" / name / f"{index:05d}.jpg", quality=85)
        Image.fromarray(1 + covered.astype(np.uint8)).save(folder / "annotations" / name / f"{index:05d}.png")


class Bench:
    """Runs in the folder `work` with the settings `args`, and what maps of their encoders are worth."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.images = write_demo_images(work / "demo", train=args.images, val=10) / "train"
        self.masks = work / "masks"
        if not self.masks.exists():
            for split, count in (("train", args.masks), ("val", args.val)):
                write_masks(self.masks, split, count)

    def learn(self, out: Path, steps: int, seed: int, *options: str) -> float:
        """CPU seconds of a run, those of when it was made where it is there."""
        batch = [f"train.batch_size={self.args.batch}", f"algorithm.koleo_group={min(64, self.args.batch)}"]
        length = [f"train.max_steps={steps}", f"train.save_every={steps}", f"train.seed={seed}"]
        if not (out / "encoder.safetensors").exists():
            began = time.process_time()
            pretrain.main(
                [RECIPE, f"data.train={self.images}", f"train.out={out}", *length, *batch, *SMALLER, *options]
            )
            (out / "cpu_seconds").write_text(f"{time.process_time() - began:.1f}", encoding="utf-8")
        return float((out / "cpu_seconds").read_text(encoding="utf-8"))

    def mean_iou(self, encoder: str) -> float:
        """In percent."""
        results, size = self.work / "evaluation.jsonl", str(self.args.size)
        sets = ["--train", f"ade20k:{self.masks}", "--val", f"ade20k:{self.masks}?split=validation"]
        options = ["--size", size, "--k", "10", "--results", str(results), "--features", str(self.work / "features")]
        knn.main([encoder, *sets, *options])
        figures = json.loads(results.read_text(encoding="utf-8").splitlines()[-1])["figures"][0]
        return round(100 * figures["mIoU"], 2)

    def run(self, seed: int) -> Iterator[Row]:
        """All runs of a seed: a row for each."""
        args, folder = self.args, self.work / f"seed-{seed}"
        early, decayed = folder / "early", folder / "decayed"

        def row(contender: str, encoder: str, seconds: float = 0.0) -> Row:
            return {"contender": contender, "seed": seed, "mIoU": self.mean_iou(encoder), "cpu_seconds": seconds}

        seconds = self.learn(early, args.steps, seed, *EARLY)
        yield row(UNTRAINED, f"random:{early / 'config.yaml'}")
        yield row(BEFORE, str(early), seconds)
        spoil = [*LATER, f"train.init={early}", f"optim.lr={args.decay_lr}"]
        yield row(DECAYED, str(decayed), self.learn(decayed, args.decay, seed, *spoil))
        options = [*LATER, f"train.init={decayed}", f"optim.lr={args.more_lr}"]
        gram = f"algorithm.gram={{teacher: {early}, weight: {args.weight}, enlarge: {args.enlarge}}}"
        for contender, more in ((WITHOUT, []), (WITH, [gram])):
            out = folder / contender.replace(" ", "-")
            yield row(contender, str(out), self.learn(out, args.more, seed, *options, *more))


def table(rows: Sequence[Row]) -> list[str]:
    """Of the last run the mean IoU of each encoder: the mean over seeds, and each."""
    own = last_run(rows, lambda row: "seed" in row)
    if not own:
        return [NOT_YET]
    found = {contender: {} for contender in (UNTRAINED, BEFORE, DECAYED, WITHOUT, WITH)}
    for row in own:
        found[row["contender"]][row["seed"]] = row["mIoU"]
    seeds = list(dict.fromkeys(row["seed"] for row in own))
    body = [
        [name, *(f"{value:.1f}" for value in (np.mean(list(some.values())), *(some[seed] for seed in seeds)))]
        for name, some in found.items()
    ]
    header = ["mIoU", "mean", *(f"seed {seed}" for seed in seeds)]
    return [f"{about(own)}; {own[0]['job']}.", "", *lines(header, body)]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.gram", description=__doc__[:52])
    parser.add_argument("--work", type=Path, help="folder of runs; without it they are gone at the end")
    parser.add_argument("--images", type=positive, default=1000, help="of the demo to learn from (%(default)s)")
    parser.add_argument("--masks", type=positive, default=100, help="images with masks to look among (%(default)s)")
    parser.add_argument("--val", type=positive, default=60, help="images with masks to judge by (%(default)s)")
    parser.add_argument("--size", type=positive, default=96, help="pixels of images that are judged (%(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="images of a step (%(default)s)")
    parser.add_argument("--steps", type=positive, default=250, help="with the loss of patches (%(default)s)")
    parser.add_argument("--decay", type=positive, default=60, help="steps by class tokens alone (%(default)s)")
    parser.add_argument("--decay-lr", type=float, default=1e-2, help="rate of these (%(default)s)")
    parser.add_argument("--more", type=positive, default=100, help="steps with and without Gram (%(default)s)")
    parser.add_argument("--more-lr", type=float, default=2e-3, help="rate of these (%(default)s)")
    parser.add_argument("--weight", type=float, default=30.0, help="of Gram (%(default)s)")
    parser.add_argument("--enlarge", type=float, default=1.0, help="sides of Gram's crops (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    add_out(parser)
    args = parser.parse_args(argv)
    config = {key: value for key, value in vars(args).items() if key not in ("work", "out", "seeds")}
    config |= {"recipe": RECIPE, "overrides": [*SMALLER], "early": [*EARLY], "later": [*LATER]}
    job = f"{args.steps} + {args.decay} + {args.more} steps of {args.batch} images"
    with tempfile.TemporaryDirectory(prefix="headrace-gram-") as name:
        bench = Bench(args, Path(args.work or name))
        for seed in args.seeds:
            for row in bench.run(seed):
                print(f"seed {seed}, {row['contender']}: mIoU {row['mIoU']} %, {row['cpu_seconds']} s", flush=True)
                append("gram", {"job": job, **row, "config": config}, folder=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
