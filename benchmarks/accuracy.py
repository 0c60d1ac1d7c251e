"""What a little pre-training is worth: ``python -m headrace.benchmarks.accuracy --train DIR --val DIR``.

Labelled images of 32 px, such as CIFAR-10's. A narrow ResNet-18 learns by SimCLR and a small vision transformer by MAE
for minutes, by the commands of any user: ``headrace pretrain``, ``knn``, ``linear``, ``finetune``. Beside them stand
raw pixels, the same encoders untrained, and the same networks trained with labels from scratch for as many epochs as
those that are fine-tuned. Everybody sees the same images, drawn at regular steps from the two sets.

A row for each goes to the ledger ``accuracy.jsonl``; top-1 in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headrace.errors import run_command
from headrace.pipelines.spec import ByteSource
from headrace.train import pretrain
from headrace.train.evaluation import finetune, knn, linear
from headrace.train.evaluation.evaluate import positive
from headrace.train.evaluation.labels import labelled, labelled_sets

from .record import add_out, append


class Method(NamedTuple):
    encoder: str
    name: str
    recipe: str  # to pre-train by
    finetune: str  # and to fine-tune
    backbone: tuple[str, ...]  # what makes it small, of both
    options: tuple[str, ...]  # of pre-training
    steps: int  # of it, unless the command line says
    tuning: tuple[str, ...] = ()  # options of fine-tuning


METHODS = (
    Method(
        "ResNet-18, 16 channels in the stem",
        "SimCLR",
        "simclr_resnet18_cifar10",
        "finetune/resnet18_cifar10",
        ("algorithm.backbone.width=16",),
        ("optim.lr=0.2", "algorithm.hidden=128", "algorithm.projection=64"),
        1000,
    ),
    Method(
        "ViT, 4 blocks 96 wide",
        "MAE",
        "mae_vit-tiny_cifar10",
        "finetune/vit-tiny_cifar10",
        ("algorithm.backbone.width=96", "algorithm.backbone.depth=4", "algorithm.backbone.heads=3"),
        ("optim.lr=2e-3", "optim.warmup=0.05", "algorithm.decoder={width: 64, depth: 1, heads: 2}"),
        4000,
        # a few epochs leave nothing to regularise: with mixup and cutmix fine-tuning ended below the linear classifier
        (
            "optim.lr=2e-3",
            "algorithm.backbone.drop_path=0.0",
            "algorithm.mixing={mixup: 0.0, cutmix: 0.0, smoothing: 0.1}",
        ),
    ),
)


def subset(source: ByteSource, count: int, folder: Path) -> Path:
    """`count` images at regular steps, all if there are fewer, in a folder per class."""
    count = min(count, len(source))
    for index in (place * len(source) // count for place in range(count)):
        path = folder / source.classes[source.label(index)] / f"{index:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(index))
    return folder


class Scores:
    """The commands that score encoders on two sets, in percent of the images of the second."""

    def __init__(self, train: Path, val: Path, work: Path, batch: int, head_epochs: int, finetune_epochs: int) -> None:
        self.train, self.val, self.work, self.batch = train, val, work, batch
        self.head_epochs, self.finetune_epochs = head_epochs, finetune_epochs
        self.results = work / "evaluation.jsonl"

    def frozen(self, encoder: str) -> dict[str, float]:
        found = {"knn": self.knn(encoder)}
        linear.main([encoder, *self._common(), "--epochs", str(self.head_epochs)])
        return found | {"linear": _percent(self._last()["top1"])}

    def knn(self, encoder: str) -> float:
        knn.main([encoder, *self._common(), "--k", "20"])
        return _percent(self._last()[0]["top1"])

    def _common(self) -> list[str]:
        sets = ["--train", str(self.train), "--val", str(self.val)]
        return [*sets, "--features", str(self.work / "features"), "--results", str(self.results)]

    def finetuned(self, method: Method, encoder: str) -> dict[str, float]:
        out = self.work / f"finetune-{method.name}-{Path(encoder).name}"
        sets = [f"data.train={self.train}", f"data.val={self.val}", f"train.out={out}"]
        settings = [f"train.epochs={self.finetune_epochs}", f"train.batch_size={self.batch}"]
        settings += ["optim.warmup=0.1", "train.precision=fp32", *method.tuning]
        finetune.main([method.finetune, encoder, *method.backbone, *sets, *settings, "--results", str(self.results)])
        return {"finetuned": _percent(self._last()["top1"])}

    def _last(self) -> dict | list[dict]:
        return json.loads(self.results.read_text(encoding="utf-8").splitlines()[-1])["figures"]


def _percent(share: float) -> float:
    return round(100 * share, 2)


def pretrained(method: Method, scores: Scores, steps: int | None) -> Path:
    """The run directory of a method, trained on the images to learn from."""
    out = scores.work / method.name
    settings = [f"data.train={scores.train}", f"train.out={out}", "train.precision=fp32"]
    settings += [f"train.max_steps={steps or method.steps}", f"train.batch_size={scores.batch}"]
    pretrain.main([method.recipe, *settings, *method.backbone, *method.options])
    return out


def rows(scores: Scores, steps: int | None) -> list[dict]:
    """Of pixels, and of each method untrained and trained: `contender`, figures, `pretrain_seconds`, `settings`."""
    found = [{"contender": "pixels", **scores.frozen("pixels:32")}]
    for method in METHODS:
        began = time.perf_counter()
        run = pretrained(method, scores, steps)
        seconds = round(time.perf_counter() - began, 1)
        settings = {"recipe": method.recipe, "overrides": [*method.backbone, *method.options]}
        settings |= {"steps": steps or method.steps, "finetune": method.finetune, "tuning": [*method.tuning]}
        for title, encoder, start in (
            (f"{method.encoder}, untrained", f"random:{run / 'config.yaml'}", "scratch"),
            (f"the same after {method.name}", str(run), str(run)),
        ):
            figures = scores.frozen(encoder) | scores.finetuned(method, start)
            found.append({"contender": title, **figures, "settings": settings})
        found[-1]["pretrain_seconds"] = seconds
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.accuracy", description=__doc__.split(":")[0])
    parser.add_argument("--train", required=True, help="labelled images of 32 px to learn from")
    parser.add_argument("--val", required=True, help="images of the same classes to classify")
    parser.add_argument("--train-images", type=positive, default=10_000, help="how many are used (%(default)s)")
    parser.add_argument("--val-images", type=positive, default=2_000, help="how many are used (%(default)s)")
    parser.add_argument("--steps", type=positive, help="of pre-training; default: 1,000 of SimCLR, 4,000 of MAE")
    parser.add_argument("--batch", type=positive, default=128, help="images of a step (%(default)s)")
    parser.add_argument("--head-epochs", type=positive, default=50, help="of the linear classifiers (%(default)s)")
    parser.add_argument("--finetune-epochs", type=positive, default=10, help="(%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="headrace-accuracy-") as name:
        work, sources = Path(name), labelled_sets(args.train, args.val)
        counts = (args.train_images, args.val_images)
        sets = [subset(labelled(source), n, work / part) for source, n, part in zip(sources, counts, ("train", "val"))]
        found = rows(Scores(*sets, work, args.batch, args.head_epochs, args.finetune_epochs), args.steps)
    config = {"images": [min(n, len(source)) for source, n in zip(sources, counts)]}
    config |= {name: getattr(args, name) for name in ("batch", "head_epochs", "finetune_epochs")}
    job = f"{config['images'][0]:,} images to learn from, {config['images'][1]:,} to classify"
    for row in found:
        append("accuracy", {"job": job, **row, "config": config | row.pop("settings", {})}, folder=args.out)
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
