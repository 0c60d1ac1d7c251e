"""DINO, iBOT, DINOv2, DINOv3: ``python -m headrace.benchmarks.self_distillation --train DIR --val DIR``.

Labelled images of 32 px, such as CIFAR-10's. One small vision transformer learns by each method, in equal steps of
equal batches of the same images, by the packaged ``..._cifar10`` recipes. k-NN accuracy of each stands beside those of
raw pixels and of the untrained encoder. Then the encoder of ``--continue`` goes on with `--others` images that it has
not seen, once as it comes, once with heads alone at first and a lower rate with layer decay.

A row for each goes to the ledger ``self_distillation.jsonl``; top-1 in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.errors import run_command
from headrace.pipelines.sources.subset import Subset
from headrace.train import pretrain
from headrace.train.evaluation import knn
from headrace.train.evaluation.evaluate import positive
from headrace.train.evaluation.labels import labelled, labelled_sets

from .accuracy import subset
from .record import add_out, append

_SMALL = (
    "algorithm.backbone.patch_size=8",
    "algorithm.backbone.width=128",
    "algorithm.backbone.depth=4",
    "algorithm.backbone.heads=4",
)
METHODS = {  # recipe and what makes DINO's of the same size as the others', which are so
    "DINO": ("dino_vit-tiny_cifar10", (*_SMALL, "algorithm.hidden=512", "algorithm.bottleneck=128")),
    "iBOT": ("ibot_vit-tiny_cifar10", ()),
    "DINOv2": ("dinov2_vit-tiny_cifar10", ()),
    "DINOv3": ("dinov3_vit-tiny_cifar10", ()),
}
_DINO = ("algorithm.prototypes=128", "algorithm.small.count=4", "algorithm.momentum=0.99", "optim.lr=1e-3")
_DINO += ("algorithm.teacher_temperature=0.03", "algorithm.teacher_temperature_from=0.03")
_DINO += ("optim.lr_batch=null", "optim.warmup=0.1", "algorithm.backbone.drop_path=0.0", "optim.weight_decay_end=0.1")
CONTINUED = {  # how a run goes on
    "as it comes": (),
    "with phases": (
        "optim.lr=2e-4",
        "optim.layer_decay=0.75",
        "optim.frozen=[{match: '^(backbone|mask_token)', until: 0.2}]",
    ),
}


def trained(recipe: str, out: Path, train: Path, steps: int, args: argparse.Namespace, options: Sequence[str]) -> float:
    """Seconds of a run by `recipe`; `args` has batch, seed and precision."""
    began = time.perf_counter()
    settings = [f"data.train={train}", f"train.out={out}", f"train.max_steps={steps}", f"train.batch_size={args.batch}"]
    settings += [f"train.seed={args.seed}", f"train.precision={args.precision}"]
    if recipe.startswith("dinov"):
        settings.append(f"algorithm.koleo_group={min(64, args.batch)}")
    pretrain.main([recipe, *settings, *options])
    return round(time.perf_counter() - began, 1)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.self_distillation", description=__doc__[:80])
    parser.add_argument("--train", required=True, help="labelled images of 32 px to learn from")
    parser.add_argument("--val", required=True, help="images of the same classes to classify")
    parser.add_argument("--train-images", type=positive, default=8_000, help="how many are used (%(default)s)")
    parser.add_argument("--val-images", type=positive, default=2_000, help="how many are used (%(default)s)")
    parser.add_argument("--others", type=positive, default=2_000, help="images to go on with (%(default)s)")
    parser.add_argument("--steps", type=positive, default=300, help="of each method (%(default)s)")
    parser.add_argument("--batch", type=positive, default=64, help="images of a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of all runs (%(default)s)")
    parser.add_argument("--continue", dest="continued", choices=METHODS, default="DINOv2", help="(%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory(prefix="headrace-self-distillation-") as name:
        work, sources = Path(name), labelled_sets(args.train, args.val)
        known, val = map(labelled, sources)
        total = min(len(known), args.train_images + args.others)
        places = [place * len(known) // total for place in range(total)]
        aside = {n for n in range(total) if (n + 1) * args.others // total > n * args.others // total}
        parts = [[place for n, place in enumerate(places) if (n in aside) == other] for other in (False, True)]
        kept = [subset(Subset(known, ids), len(ids), work / name) for ids, name in zip(parts, ("train", "others"))]
        first, others = kept
        queries = subset(val, args.val_images, work / "val")

        def score(encoder: str) -> float:
            results = work / "evaluation.jsonl"
            sets = ["--train", str(first), "--val", str(queries), "--features", str(work / "features")]
            knn.main([encoder, *sets, "--results", str(results), "--k", "20"])
            return round(
                100 * json.loads(results.read_text(encoding="utf-8").splitlines()[-1])["figures"][0]["top1"], 2
            )

        found.append({"contender": "pixels", "knn": score("pixels:32")})
        for method, (recipe, options) in METHODS.items():
            options = (*options, *(_DINO if method == "DINO" else ()))
            seconds = trained(recipe, work / method, first, args.steps, args, options)
            if len(found) == 1:
                found.append({"contender": "untrained", "knn": score(f"random:{work / method / 'config.yaml'}")})
            row = {"contender": method, "knn": score(str(work / method)), "seconds": seconds, "recipe": recipe}
            found.append({**row, "overrides": [*options]})
        recipe, options = METHODS[args.continued]
        for how, more in CONTINUED.items():
            out = work / how.replace(" ", "-")
            start = f"train.init={work / args.continued}"
            steps = max(1, args.steps // 3)
            seconds = trained(recipe, out, others, steps, args, (*options, start, *more))
            row = {"contender": f"{args.continued} continued {how}", "knn": score(str(out)), "seconds": seconds}
            found.append({**row, "recipe": recipe, "overrides": [*options, *more], "steps": steps})
    config = {name: getattr(args, name) for name in ("train_images", "val_images", "others", "steps", "batch", "seed")}
    config["precision"] = args.precision
    job = f"{args.steps:,} steps of {args.batch} images, seed {args.seed}"
    for row in found:
        print(", ".join(f"{key} {value}" for key, value in row.items() if key != "overrides"))
        own = {key: row.pop(key) for key in ("recipe", "overrides", "steps") if key in row}
        append("self_distillation", {"job": job, **row, "config": config | own}, folder=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
