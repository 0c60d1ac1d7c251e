"""``headrace linear``: what a linear classifier makes of frozen features, the fast way or as published."""

from __future__ import annotations

import argparse

from ...errors import UserError
from ...places import place
from ..engine.distributed import launch, pick_device
from .embed_encoder import saved_algorithm, started_with
from .embed_store import stored_features
from .evaluate import (
    Stopwatch,
    add_arguments,
    add_sets,
    encoder_of,
    options_of,
    positive,
    record,
    require_finite,
    say_left_out,
    table,
)
from .finetune import run_classifier
from .labels import labelled_sets, remarks
from .linear_protocols import PROTOCOLS, linear_recipe, protocol_of
from .linear_sweep import DECAYS, RATES, sweep_heads


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace linear",
        description="Accuracy of a linear classifier on frozen features. By default features are computed once, "
        "without augmentation, and heads of many learning rates and weight decays are trained at once; --protocol "
        "trains on augmented images with the published settings.",
    )
    add_arguments(parser)
    add_sets(parser)
    parser.add_argument(
        "--protocol", choices=("auto", *PROTOCOLS), help="the published one of a method; auto: that of the encoder's"
    )
    parser.add_argument("--lr", type=float, nargs="+", default=RATES, help="learning rates of the heads")
    parser.add_argument("--weight-decay", type=float, nargs="+", default=DECAYS, help="weight decays of the heads")
    parser.add_argument("--epochs", type=positive, help="default: 50, or as published")
    parser.add_argument(
        "--head-batch", type=positive, help="batch size of the classifier; default: 256, or as published"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=place, default="runs/linear", help="run directory with --protocol")
    arguments = parser.parse_args(argv)
    if min(arguments.lr) <= 0 or min(arguments.weight_decay) < 0:
        raise UserError("--lr, --weight-decay: rates are positive, decays not negative")
    return _fast(arguments) if arguments.protocol is None else _published(arguments)


def _fast(arguments: argparse.Namespace) -> int:
    watch, encoder = Stopwatch(), encoder_of(arguments)
    sources = labelled_sets(arguments.train, arguments.val)
    with launch(pick_device(arguments.device)) as process:
        options = options_of(arguments, process)
        train, val = (stored_features(encoder, source, arguments.features, **options) for source in sources)
    if not process.is_main:  # the heads take one process seconds
        return 0
    for flag, features in (("--train", train), ("--val", val)):
        require_finite(features, flag, encoder)
    unlabelled = [int((features.labels < 0).sum()) for features in (train, val)]
    train, val = train.labelled(), val.labelled()
    grid = {"rates": sorted(set(arguments.lr)), "decays": sorted(set(arguments.weight_decay))}
    rest = {"epochs": arguments.epochs or 50, "batch_size": arguments.head_batch or 256, "seed": arguments.seed}
    best, heads = sweep_heads(train, val, len(sources[0].classes), **grid, **rest, device=process.device)
    data = {"train": sources[0].name, "val": sources[1].name, "images": [len(train.labels), len(val.labels)]}
    data["unlabelled"] = unlabelled
    record(arguments.results, "linear sweep", encoder, data, grid | rest, best | {"heads": heads}, watch)
    table(f"linear, best of {len(heads)} heads on features, {encoder.name}", [best])
    edges = (grid["rates"][0], grid["rates"][-1])
    if len(grid["rates"]) > 2 and best["lr"] in edges:
        print("the best learning rate lies at the edge of those tried; widen --lr")
    for line in remarks(*sources):
        print(line)
    say_left_out(train.left_out + val.left_out)
    return 0


def _published(arguments: argparse.Namespace) -> int:
    if arguments.layer or arguments.view:
        raise UserError("--layer, --view: belong to the fast way; leave out --protocol")
    algorithm = saved_algorithm(arguments.encoder)
    sources = labelled_sets(arguments.train, arguments.val)
    protocol = protocol_of(algorithm) if arguments.protocol == "auto" else arguments.protocol
    with started_with(arguments.encoder, arguments.out) as weights:
        recipe = linear_recipe(
            algorithm,
            protocol,
            weights,
            train=arguments.train,
            val=arguments.val,
            out=arguments.out,
            classes=len(sources[0].classes),
            batch_size=arguments.head_batch,
            epochs=arguments.epochs,
            seed=arguments.seed,
            device=arguments.device,
            loader=arguments.loader,
            threads=arguments.threads,
            max_bad=arguments.max_bad,
        )
        return run_classifier(recipe, f"linear {protocol}", arguments.encoder, sources, arguments.results)
