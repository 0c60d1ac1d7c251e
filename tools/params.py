"""How large a recipe's model is: ``headrace params <recipe>``."""

from __future__ import annotations

import argparse

import torch

from ..models.algorithms import find_algorithm
from ..models.targets.frozen import without_weights
from ..train.recipe import load_recipe


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace params",
        description="Parameters, in millions, of a recipe's encoder and of all that it trains with. Fixed tables, "
        "queues and networks that are used as published count where they are parameters.",
    )
    parser.add_argument("recipe", help="a YAML file or a packaged recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args(argv)
    section = load_recipe(arguments.recipe, arguments.overrides).algorithm
    with torch.device("meta"), without_weights():
        algorithm = find_algorithm(section.name)(section)
    for what, module in (("encoder", algorithm.encoder), ("all", algorithm)):
        counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
        total, trained = sum(n for n, _ in counts), sum(n for n, gradient in counts if gradient)
        print(f"{what:<8} {total / 1e6:10.3f} M, {trained / 1e6:10.3f} M with gradient")
    return 0
