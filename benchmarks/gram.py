"""Gram anchoring: ``python -m headrace.benchmarks.gram``. Do maps of patches that have decayed recover with it?

A small DINOv3 learns from images of the demo. Then it goes on at a high rate without its loss of masked patches, so
that class tokens alone are trained and maps of patches decay: what takes long runs of large models is planted here.
From there it goes on at its own rate, once as it is and once with Gram anchoring to its early encoder, in steps and
otherwise equal. Of each encoder: patches of the demo's held-out images by their nearest patches (`headrace dense-knn`),
whose classes are the backdrop and five shapes; mean IoU in percent.

What is finished lies in `--work`: an interrupted benchmark goes on there. A row for each goes to the ledger
``gram.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headrace.errors import run_command
from headrace.tools.demo_images import SHAPES, masked_demo_image, write_demo_images
from headrace.train import pretrain
from headrace.train.evaluation.evaluate import positive
from headrace.train.patches import knn

from .record import add_out, append

RECIPE = "dinov3_vit-tiny-64px"
SMALLER = ("algorithm.backbone.width=96", "algorithm.backbone.heads=3", "algorithm.small.count=2")
SMALLER += ("algorithm.momentum=0.95", "train.precision=fp32")
GOES_ON = ("optim.warmup=0.1", "optim.frozen=[]", "algorithm.teacher_temperature_from=0.07")
GOES_ON += ("algorithm.patch_weight=0.0",)


def write_masks(folder: Path, split: str, count: int, seed: int = 0) -> None:
    """The demo's images with masks, as ADE20K lays them out: 1 the backdrop, 2 and on the shapes."""
    name = {"train": "training", "val": "validation"}[split]
    for part in ("images", "annotations"):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture, kind, covered = masked_demo_image(seed, split, index)
        mask = np.where(covered, 2 + SHAPES.index(kind.split("-")[0]), 1).astype(np.uint8)
        picture.save(folder / "images" / name / f"{index:05d}.jpg", quality=85)
        Image.fromarray(mask).save(folder / "annotations" / name / f"{index:05d}.png")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.gram", description=__doc__[:52])
    parser.add_argument("--work", type=Path, help="folder of runs; without it they are gone at the end")
    parser.add_argument("--images", type=positive, default=1000, help="of the demo to learn from (%(default)s)")
    parser.add_argument("--masks", type=positive, default=150, help="images with masks to look among (%(default)s)")
    parser.add_argument("--val", type=positive, default=60, help="images with masks to judge by (%(default)s)")
    parser.add_argument("--steps", type=positive, default=300, help="until maps are good (%(default)s)")
    parser.add_argument("--decay", type=positive, default=300, help="steps without patches (%(default)s)")
    parser.add_argument("--decay-lr", type=float, default=1e-2, help="rate of these, ten times its own (%(default)s)")
    parser.add_argument("--more", type=positive, default=100, help="steps with and without Gram (%(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="images of a step (%(default)s)")
    parser.add_argument("--size", type=positive, default=96, help="pixels of images that are judged (%(default)s)")
    parser.add_argument("--weight", type=float, default=2.0, help="of Gram (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory(prefix="headrace-gram-") as name:
        work = Path(args.work or name)
        images = write_demo_images(work / "demo", train=args.images, val=10, seed=args.seed) / "train"
        for split, count in (("train", args.masks), ("val", args.val)):
            write_masks(work / "masks", split, count, args.seed)

        def learn(which: str, steps: int, start: str | None, *options: str) -> float:
            """Seconds of a run, which `start` may give its weights."""
            out = work / which
            given = [] if start is None else [f"train.init={work / start}", *GOES_ON]
            settings = [f"data.train={images}", f"train.out={out}", f"train.max_steps={steps}"]
            settings += [f"train.batch_size={args.batch}", f"algorithm.koleo_group={min(64, args.batch)}"]
            settings += [f"train.seed={args.seed}", f"train.save_every={steps}", *SMALLER, *given, *options]
            if not (out / "encoder.safetensors").exists():
                began = time.perf_counter()
                pretrain.main([RECIPE, *settings])
                (out / "seconds").write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
            return float((out / "seconds").read_text(encoding="utf-8"))

        def judge(contender: str, encoder: str, seconds: float = 0.0) -> None:
            results = work / "evaluation.jsonl"
            sets = ["--train", f"ade20k:{work / 'masks'}", "--val", f"ade20k:{work / 'masks'}?split=validation"]
            options = ["--size", str(args.size), "--k", "10", "--results", str(results)]
            knn.main([encoder, *sets, *options, "--features", str(work / "features")])
            figures = json.loads(results.read_text(encoding="utf-8").splitlines()[-1])["figures"][0]
            found.append({"contender": contender, "mIoU": round(100 * figures["mIoU"], 2), "seconds": seconds})
            print(f"{contender}: mIoU {found[-1]['mIoU']} %, {seconds} s", flush=True)

        seconds = learn("early", args.steps, None)
        judge("untrained", f"random:{work / 'early' / 'config.yaml'}")
        judge("early", str(work / "early"), seconds)
        judge("decayed", str(work / "decayed"), learn("decayed", args.decay, "early", f"optim.lr={args.decay_lr}"))
        judge("continued without Gram", str(work / "without"), learn("without", args.more, "decayed"))
        gram = f"{{from: 0.0, teacher: {work / 'early'}, weight: {args.weight}, warmup: 0.1, enlarge: 2.0}}"
        judge("continued with Gram", str(work / "with"), learn("with", args.more, "decayed", f"algorithm.gram={gram}"))
    config = {key: value for key, value in vars(args).items() if key not in ("work", "out")}
    config |= {"recipe": RECIPE, "overrides": [*SMALLER, *GOES_ON]}
    job = f"{args.steps} + {args.decay} + {args.more} steps of {args.batch} images, seed {args.seed}"
    for row in found:
        append("gram", {"job": job, **row, "config": config}, folder=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
