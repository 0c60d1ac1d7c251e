"""``headrace pretrain``: its arguments, read before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace pretrain", description="Pre-train an encoder from a recipe.")
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe such as mae_vit-tiny")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. data.train=shards train.max_steps=50"
    )
    parser.add_argument("--show", action="store_true", help="print the resolved recipe with the origin of each value")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="20 steps of a tiny model on the CPU, on generated images unless data.train",
    )
    arguments = parser.parse_intermixed_args(argv)
    from .recipe.recipe import load_recipe, replaced, smoke

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.smoke:
        asked, recipe = recipe, smoke(recipe)
        for note in replaced(arguments.overrides, asked, recipe):
            print(f"headrace: {note}", file=sys.stderr)
    if arguments.show:
        print(recipe.resolved, end="")
        return 0
    from .pretrain import run

    return run(recipe, generated=arguments.smoke and recipe.data.train is None)
