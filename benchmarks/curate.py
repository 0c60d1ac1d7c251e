"""What a balanced choice is worth: ``python -m headrace.benchmarks.curate --train DIR --val DIR --work DIR``.

Labelled images of 32 px, such as CIFAR-10's, are made uneven: from class to class fewer by one factor, the last has a
hundredth of the first's. A narrow ResNet-18 learns by SimCLR on all of these; by its features `headrace curate` chooses
a share of them. The same network then learns anew, in as many steps, on the chosen images, on as many drawn by chance,
and on as many that labels were asked to even out, the most that any choice can do. Each is judged by k-NN, with even
sets of images to learn from and to classify, and each choice by the entropy of its classes.

What is finished lies in `--work`: an interrupted benchmark goes on there. Rows go to the ledger ``curate.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from headrace.errors import UserError, run_command
from headrace.pipelines.plan.columns import folder_beside, write_columns
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.subset import Subset
from headrace.pipelines.spec import ByteSource
from headrace.tools.know import curate
from headrace.tools.know.hierarchy import cut
from headrace.train import pretrain
from headrace.train.evaluation import knn
from headrace.train.evaluation.evaluate import positive, share
from headrace.train.evaluation.labels import labelled, labelled_sets, labels_of

from .accuracy import subset
from .record import add_out, append, spread

RECIPE = "simclr_resnet18_cifar10"
OPTIONS = ("algorithm.backbone.width=8", "algorithm.hidden=128", "algorithm.projection=64", "optim.lr=0.2")
OPTIONS += ("optim.warmup=0.1", "train.precision=fp32")
_PIXELS = "pixels:16"  # the encoder of those who have none


def uneven(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Which samples to keep, ascending, so that the first class has `ratio` times as many as the last, and each one
    fewer than the one before by the same factor."""
    classes = labels.max() + 1
    rows = [np.flatnonzero(labels == label) for label in range(classes)]
    least = min(map(len, rows))
    counts = [round(least * ratio ** (-label / max(1, classes - 1))) for label in range(classes)]
    return np.sort(np.concatenate([own[:count] for own, count in zip(rows, counts)]))


def by_chance(count: int, images: int, seed: int) -> np.ndarray:
    """(images,) bool, `count` of which are true."""
    chosen = np.zeros(images, bool)
    chosen[np.random.default_rng(seed).permutation(images)[:count]] = True
    return chosen


def by_label(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) bool, `count` of which are true, as even over the classes as these have images."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label, part in enumerate(cut(np.bincount(labels), count, rng).tolist()):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:part]] = True
    return chosen


class Bench:
    """The runs in a folder, their choices and scores; what is there already is not made again."""

    def __init__(self, train: ByteSource, val: ByteSource, given: argparse.Namespace) -> None:
        self.work, self.given = given.work, given
        self.uneven = self._copied(Subset(train, uneven(labels_of(train), given.ratio)), len(train), "uneven")
        self.bank = self._copied(train, given.bank, "bank")
        self.queries = self._copied(val, given.queries, "queries")
        self.source = open_source(self.uneven)
        self.labels = labels_of(self.source)
        self.count = round(given.keep * len(self.source))

    def _copied(self, source: ByteSource, count: int, name: str) -> Path:
        if not (done := self.work / f"{name}.done").exists():
            subset(source, count, self.work / name)
            done.touch()
        return self.work / name

    def curated(self, encoder: str, name: str, seed: int) -> np.ndarray:
        """By the command, into a column of that name."""
        if (done := folder_beside(self.uneven) / f"{name}.npy").exists():
            return np.load(done)
        words = ["--keep", str(self.given.keep), "--seed", str(seed), "--features", str(self.work / "features")]
        curate.main([encoder, str(self.uneven), *words])
        return self.column(name, np.load(folder_beside(self.uneven) / "curated.npy"))

    def column(self, name: str, chosen: np.ndarray) -> np.ndarray:
        write_columns(folder_beside(self.uneven), self.source, {name: chosen})
        return chosen

    def trained(self, name: str, where: str | None, seed: int) -> Path:
        """The run on the images that a filter lets through. Raises `UserError` where it is told to stop."""
        out = self.work / name
        if not (out / "encoder.safetensors").exists():
            data = str(self.uneven) if where is None else f"{{own: {{source: {self.uneven}, where: {where}}}}}"
            settings = [f"data.train={data}", f"train.out={out}", f"train.seed={seed}"]
            settings += [f"train.max_steps={self.given.steps}", f"train.batch_size={self.given.batch}"]
            pretrain.main([RECIPE, *settings, *OPTIONS])
        if not (out / "encoder.safetensors").exists():
            raise UserError(f"{out}: not finished; the same command goes on there")
        return out

    def score(self, encoder: Path) -> float:
        """k-NN accuracy in percent."""
        sets = ["--train", str(self.bank), "--val", str(self.queries), "--features", str(self.work / "features")]
        results = self.work / "evaluation.jsonl"
        knn.main([str(encoder), *sets, "--results", str(results), "--k", "20"])
        return 100 * json.loads(results.read_text(encoding="utf-8").splitlines()[-1])["figures"][0]["top1"]

    def rows(self) -> Iterator[dict]:
        job = f"{len(self.source):,} images, {self.labels.max() + 1} classes"
        first = self.trained("all", None, 0)
        yield {"job": job, "contender": "all of them", **self._about([np.ones(len(self.source), bool)], [first])}
        job, seeds = f"{self.count:,} of them", self.given.seeds
        pixels = [self.curated(_PIXELS, f"pixels_{seed}", seed) for seed in seeds]
        yield {"job": job, "contender": f"curated by {_PIXELS}", **self._about(pixels, [])}
        ways = {
            "random": lambda name, seed: self.column(name, by_chance(self.count, len(self.source), seed)),
            "curated": lambda name, seed: self.curated(str(first), name, seed),
            "even": lambda name, seed: self.column(name, by_label(self.labels, self.count, seed)),
        }
        made = {(way, seed): choose(f"{way}_{seed}", seed) for seed in seeds for way, choose in ways.items()}
        runs = {(way, seed): self.trained(f"{way}_{seed}", f"{way}_{seed}", seed) for way, seed in made}
        titles = {"random": "by chance", "curated": "curated by SimCLR on all", "even": "even by label"}
        for way, title in titles.items():
            found = [[things[way, seed] for seed in seeds] for things in (made, runs)]
            yield {"job": job, "contender": title, **self._about(*found)}

    def _about(self, chosen: Sequence[np.ndarray], runs: Sequence[Path]) -> dict:
        """Of a choice for each seed, and the runs on them: medians."""
        counts = [np.bincount(self.labels[own], minlength=self.labels.max() + 1) for own in chosen]
        row = {"images": int(chosen[0].sum()), "smallest_class": int(np.median([own.min() for own in counts]))}
        row["entropy_of_classes"] = float(np.median([curate.class_entropy(self.labels[own]) for own in chosen]))
        return row | (spread("knn", [self.score(run) for run in runs]) if runs else {})


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.curate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", required=True, help="labelled images of 32 px to learn from")
    parser.add_argument("--val", required=True, help="images of the same classes to classify")
    parser.add_argument("--work", required=True, type=Path, help="folder of what is finished")
    parser.add_argument("--ratio", type=float, default=100, help="of the first class's images to the last's (100)")
    parser.add_argument("--keep", type=share, default=0.25, help="share of the images that is chosen (%(default)s)")
    parser.add_argument("--bank", type=positive, default=5_000, help="images that k-NN learns from (%(default)s)")
    parser.add_argument("--queries", type=positive, default=5_000, help="images that it classifies (%(default)s)")
    parser.add_argument("--steps", type=positive, default=300, help="of each run (%(default)s)")
    parser.add_argument("--batch", type=positive, default=128, help="images of a step (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of choices and runs (0 1)")
    add_out(parser)
    given = parser.parse_args(argv)
    bench = Bench(*map(labelled, labelled_sets(given.train, given.val)), given)
    names = ("ratio", "keep", "bank", "queries", "steps", "batch", "seeds")
    config = {name: getattr(given, name) for name in names} | {"recipe": RECIPE, "overrides": [*OPTIONS]}
    for row in list(bench.rows()):
        print(json.dumps(row))
        append("curate", row | {"config": config}, folder=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
