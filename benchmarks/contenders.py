"""Methods at equal CPU time: ``python -m headrace.benchmarks.contenders --train DIR --val DIR [--minutes 5]``.

Labelled images of 32 px, such as CIFAR-10's. Every method trains a small encoder, a narrow ResNet-18 or a vision
transformer of four blocks, for as many steps as it takes in `--minutes` of CPU time of this machine, by the commands of
any user; then k-NN and a linear classifier score it, and the meters of its last steps are noted. A student learns from
the best of them (``distill``), and the first method trains once more with smaller views at first (``progressive``).

``--progressive`` trains the first method twice, with and without views that grow, and prints how many CPU seconds each
takes to the k-NN accuracy that the one without has at its end.

``--teacher ENCODER`` instead lets a student learn from that one, and the first method train the same encoder from
scratch.

``--qualities`` trains every method well and badly instead and prints, for each meter, Spearman's correlation with the
linear classifier's accuracy. ``--cost`` times the meters beside a step. Rows go to the ledger ``contenders.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from headrace.errors import run_command
from headrace.train import pretrain
from headrace.train.engine.checkpoint import checkpoints, step_of
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.step import Stepper
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.evaluate import positive, table
from headrace.train.evaluation.labels import labelled, labelled_sets

from .accuracy import Scores, subset
from .contender_tables import METERS, QUALITIES, correlations
from .record import add_out, append

_VIT = ("algorithm.backbone.width=96", "algorithm.backbone.depth=4", "algorithm.backbone.heads=3")
_RESNET = ("algorithm.backbone.width=16",)
METHODS: dict[str, tuple[str, tuple[str, ...], float]] = {  # recipe, overrides, rate for 128 images a step
    "simclr": ("simclr_resnet18_cifar10", (*_RESNET, "algorithm.hidden=128", "algorithm.projection=64"), 0.1),
    "dino": ("dino_vit-tiny_cifar10", (*_VIT, "algorithm.hidden=256", "algorithm.prototypes=1024"), 1e-3),
    "mae": ("mae_vit-tiny_cifar10", (*_VIT, "algorithm.decoder={width: 64, depth: 1, heads: 2}"), 1e-3),
    "lejepa": ("lejepa_resnet18_cifar10", (*_RESNET, "algorithm.hidden=256"), 2e-3),
    "lejepa-vit": ("lejepa_vit-tiny_cifar10", (*_VIT, "algorithm.hidden=256"), 1e-3),
    "ijepa": ("ijepa_vit-tiny_cifar10", (*_VIT, "algorithm.predictor={width: 48, depth: 2, heads: 3}"), 1e-3),
    "capi": (
        "capi_vit-tiny_cifar10",
        (
            "algorithm.backbone={width: 96, depth: 4, heads: 3}",
            "algorithm.predictor_depth=2",
            "algorithm.clusters=256",
        ),
        1e-3,
    ),
}
_TRIAL = 12  # steps whose time says how many there are in a minute; starting and compiling, in the first, do not count
_GROWING = "algorithm.view.size={0: 16, 40%: 24, 70%: 32}"
_MARKS = 16  # moments of a run at which `--progressive` looks at k-NN


class Bench:
    """The sets, and what is done with them; `minutes` of CPU time a run."""

    def __init__(self, scores: Scores, minutes: float, batch: int, folder: Path) -> None:
        self.scores, self.minutes, self.batch, self.folder = scores, minutes, batch, folder

    def run(
        self, name: str, recipe: str, overrides: Sequence[str], rate: float, seed: int, share: float = 1.0, of: str = ""
    ) -> dict:
        """Trains for `share` of the minutes; a row of figures. `of`: what besides them the job is called after."""
        out, settings = self.scores.work / f"{name}-{seed}", self._settings(overrides, rate, seed)
        steps = self._steps(recipe, settings, out, share)
        seconds = self._seconds(recipe, [*settings, f"train.max_steps={steps}", f"train.out={out}"])
        last = [row["metrics"] for row in read_metrics(out)[-5:]]
        meters = {key: round(float(np.mean([row[key] for row in last])), 4) for key in METERS if key in last[-1]}
        figures = {"contender": name, "seed": seed, "steps": steps, "cpu_seconds": round(seconds, 1)}
        row = figures | self.scores.frozen(str(out)) | meters
        told = [re.sub("teacher=.*/", "teacher=", text) for text in overrides]  # not where it lies
        settings = {"recipe": recipe, "overrides": told, "rate": rate, "batch": self.batch}
        append(
            "contenders", {"job": f"{self.minutes:g} CPU minutes{of}", **row, "config": settings}, folder=self.folder
        )
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        return row | {"out": str(out)}

    def climb(self, name: str, recipe: str, overrides: Sequence[str], rate: float) -> list[dict]:
        """Trains for the minutes; `step`, `cpu_seconds` of training until then and `knn`, at `_MARKS` moments."""
        out, settings = self.scores.work / f"{name}-climb", self._settings(overrides, rate, 0)
        steps = self._steps(recipe, settings, out, 1.0)
        every = max(1, steps // _MARKS)
        settings += [f"train.save_every={every}", f"train.keep_every={every}"]
        with step_ends() as ends:
            self._seconds(recipe, [*settings, f"train.max_steps={steps}", f"train.out={out}"])
        found = []
        for path in checkpoints(out):
            figures = {"step": step_of(path), "cpu_seconds": round(ends[step_of(path) - 1], 1)}
            found.append(figures | {"knn": self.scores.knn(str(path))})
        return found

    def _settings(self, overrides: Sequence[str], rate: float, seed: int) -> list[str]:
        settings = [f"data.train={self.scores.train}", "train.precision=fp32", "optim.warmup=0.1", f"optim.lr={rate}"]
        return [*settings, "optim.lr_batch=null", f"train.batch_size={self.batch}", f"train.seed={seed}", *overrides]

    def _steps(self, recipe: str, settings: Sequence[str], out: Path, share: float) -> int:
        """How many there are in `share` of the minutes."""
        with step_ends() as ends:
            self._seconds(recipe, [*settings, f"train.max_steps={_TRIAL}", f"train.out={out}-trial"])
        return max(20, int(share * 60 * self.minutes / np.median(np.diff(ends))))

    def _seconds(self, recipe: str, arguments: list[str]) -> float:
        began = time.process_time()
        pretrain.main([recipe, *arguments])
        return time.process_time() - began


def compared(bench: Bench, names: Sequence[str], seeds: int) -> Iterator[dict]:
    """All methods with one seed, the best two with `seeds`; then a student of the best, from scratch beside it, and the
    first with views that grow."""
    rows = [bench.run(name, *METHODS[name], seed=0) for name in names]
    yield from rows
    best = sorted(rows, key=lambda row: -row["knn"])[:2]
    for row in best:
        for seed in range(1, seeds):
            yield bench.run(row["contender"], *METHODS[row["contender"]], seed=seed)
    yield bench.run("distill", *student(best[0]["out"]), seed=0)
    recipe, overrides, rate = METHODS[names[0]]
    yield bench.run(f"{names[0]}-progressive", recipe, (*overrides, _GROWING), rate, seed=0)


def student(teacher: str) -> tuple[str, tuple[str, ...], float]:
    """The recipe, overrides and rate of a narrow ResNet-18 that learns from an encoder."""
    width = load_encoder(teacher).module.features
    settings = (f"algorithm.teacher={teacher}", f"algorithm.features={width}", "algorithm.queue=4096")
    return "distill_resnet18_cifar10", (*_RESNET, *settings), 2e-3


def taught(bench: Bench, name: str, teacher: str) -> list[dict]:
    """Rows for a teacher, its student, and the first method from scratch for as long."""
    rows = [{"contender": "the teacher", **bench.scores.frozen(teacher)}]
    append("contenders", {"job": f"{bench.minutes:g} CPU minutes with a teacher", **rows[0]}, folder=bench.folder)
    rows.append(bench.run("distill", *student(teacher), seed=0, of=" with a teacher"))
    return [*rows, bench.run(f"{name}, from scratch", *METHODS[name], seed=0, of=" with a teacher")]


@contextmanager
def step_ends() -> Iterator[list[float]]:
    """CPU seconds of this process since now, at the end of each step of a run inside."""
    ends: list[float] = []
    began, true_step = time.process_time(), Stepper.__call__

    def step(self, batch, progress):
        output = true_step(self, batch, progress)
        ends.append(time.process_time() - began)
        return output

    Stepper.__call__ = step
    try:
        yield ends
    finally:
        Stepper.__call__ = true_step


def reached(curve: Sequence[dict], wanted: float) -> float | None:
    """CPU seconds to the first moment with that k-NN accuracy, or None."""
    return next((moment["cpu_seconds"] for moment in curve if moment["knn"] >= wanted), None)


def progressive(bench: Bench, name: str) -> list[dict]:
    """A row for the method as it is and one with views that grow: seconds to the k-NN that the first one ends with."""
    recipe, overrides, rate = METHODS[name]
    ways = {name: overrides, f"{name}, views that grow": (*overrides, _GROWING)}
    curves = {way: bench.climb(way.replace(", views that ", "-"), recipe, own, rate) for way, own in ways.items()}
    wanted, rows = curves[name][-1]["knn"], []
    for way, curve in curves.items():
        row = {"job": f"k-NN of {bench.minutes:g} CPU minutes", "contender": way, "wanted_knn": wanted}
        row |= {"cpu_seconds_to_it": reached(curve, wanted), "knn_at_the_end": curve[-1]["knn"]}
        row |= {"steps": curve[-1]["step"], "cpu_seconds": curve[-1]["cpu_seconds"]}
        config = {"recipe": recipe, "overrides": [*ways[way]], "rate": rate, "batch": bench.batch}
        append("contenders", {**row, "curve": curve, "config": config}, folder=bench.folder)
        rows.append(row)
    return rows


def qualities(bench: Bench, names: Sequence[str]) -> Iterator[dict]:
    """Every method in each of the `QUALITIES`."""
    for name in names:
        recipe, overrides, rate = METHODS[name]
        for quality, (share, factor) in QUALITIES.items():
            yield bench.run(f"{name}-{quality}", recipe, overrides, rate * factor, seed=0, share=share) | {"of": name}


def cost() -> dict[str, float]:
    """CPU seconds of a step of `mae_vit-tiny_cifar10`'s model with 128 images, of the meters, and their share of the
    ten steps between two logging steps."""
    import torch

    from headrace.models.algorithm import Progress, StepOutput
    from headrace.models.algorithms import make_algorithm
    from headrace.models.meters import meters
    from headrace.pipelines.spec import Batch
    from headrace.pipelines.views.masks import draw_mask
    from headrace.train.recipe.recipe import load_recipe

    algorithm, ids = make_algorithm(load_recipe("mae_vit-tiny_cifar10", []).algorithm), torch.arange(128)
    mask = draw_mask(algorithm.inputs().mask, 0, 0, ids)
    batch = Batch({"image": torch.randn(1, 128, 3, 32, 32)}, ids, None, mask, 0, 0)
    features = torch.randn(4, 256, 768)
    output = StepOutput(features.sum(), embedding=features[0], views=features, patches=torch.randn(16, 196, 768))
    seconds = {"step_s": [], "meters_s": []}
    for _ in range(5):
        began = time.process_time()
        algorithm(batch, Progress(0, 10, 10)).loss.backward()
        seconds["step_s"].append(time.process_time() - began)
        began = time.process_time()
        meters(output)
        seconds["meters_s"].append(time.process_time() - began)
    found = {key: float(np.median(values)) for key, values in seconds.items()}
    return found | {"share": found["meters_s"] / (10 * found["step_s"])}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.contenders", description=__doc__.split(":")[0])
    parser.add_argument("--train", help="labelled images of 32 px to learn from")
    parser.add_argument("--val", help="images of the same classes to classify")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="these methods alone")
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU minutes of each training (%(default)s)")
    parser.add_argument("--seeds", type=positive, default=3, help="of the two best (%(default)s)")
    parser.add_argument("--train-images", type=positive, default=10_000, help="how many are used (%(default)s)")
    parser.add_argument("--val-images", type=positive, default=2_000, help="how many are used (%(default)s)")
    parser.add_argument("--batch", type=positive, default=128, help="images of a step (%(default)s)")
    parser.add_argument("--qualities", action="store_true", help="calibrate the meters")
    text = "CPU seconds to the same k-NN with and without views that grow, of the first of --only"
    parser.add_argument("--progressive", action="store_true", help=text)
    parser.add_argument("--cost", action="store_true", help="time the meters; needs no images")
    parser.add_argument("--teacher", metavar="ENCODER", help="a student of this one beside the first of --only")
    add_out(parser)
    args = parser.parse_args(argv)
    if args.cost:
        row = {key: float(f"{value:.4g}") for key, value in cost().items()}
        append("contenders", {"job": "cost of meters", **row}, folder=args.out)
        print(", ".join(f"{key} {value}" for key, value in row.items()))
        return 0
    if not (args.train and args.val):
        parser.error("--train and --val are needed")
    with tempfile.TemporaryDirectory(prefix="headrace-contenders-") as name:
        work, sources = Path(name), labelled_sets(args.train, args.val)
        counts = (args.train_images, args.val_images)
        sets = [subset(labelled(source), n, work / part) for source, n, part in zip(sources, counts, ("train", "val"))]
        bench = Bench(Scores(*sets, work, args.batch, 20, 1), args.minutes, args.batch, args.out)
        if args.progressive:
            table("to the same k-NN", progressive(bench, args.only[0]))
            return 0
        if args.teacher:
            taught(bench, args.only[0], args.teacher)
            return 0
        if not args.qualities:
            list(compared(bench, args.only, args.seeds))
            return 0
        found = correlations(list(qualities(bench, args.only)))
    append("contenders", {"job": "meters and accuracy", "correlations": found}, folder=args.out)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
