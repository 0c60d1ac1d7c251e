"""``headrace plan``: what a run will read, before it does."""

from __future__ import annotations

import argparse
import json

from ..errors import UserError
from ..pipelines.plan.facts import in_words, plan_hash, sets_of
from ..pipelines.plan.follow import unseen
from ..pipelines.plan.given import as_source
from ..pipelines.plan.order_of import order_of, run_length
from ..places import new_file
from ..train.recipe.recipe import load_recipe


def plan(recipe: str, overrides: list[str]) -> dict:
    """``{recipe, hash, batch_size, steps, epochs, steps_per_epoch, ends, images, draws, sets: [...]}``; for the sets
    see `pipelines.plan.facts.sets_of`. Raises `UserError`."""
    built = load_recipe(recipe, overrides)
    settings, data = built.train, built.data
    if data.train is None:
        raise UserError("data.train: missing; name the images, e.g. data.train=path/to/shards")
    source = as_source(data.train, data.mix)
    length = {"epochs": settings.epochs, "max_steps": settings.max_steps}
    reading = {"seed": settings.seed, "last": data.last_batch, "block": data.block, **length}
    frozen = unseen(len(source)) if settings.ledger else None
    order = order_of(source, settings.batch_size, **reading, frozen=frozen)
    steps = run_length(order, **length)
    return {
        "recipe": built.name,
        "hash": plan_hash(source, order),
        "batch_size": settings.batch_size,
        "steps": steps,
        "epochs": steps / order.steps_per_epoch,
        "steps_per_epoch": order.steps_per_epoch,
        "ends": order.ends,
        "images": len(source),
        "draws": steps * settings.batch_size,
        "sets": sets_of(source, order, steps),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace plan", description="What a run will read: sets, shares, visits.")
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. data.train=shards")
    parser.add_argument("--json", type=new_file, help="a file that gets the same as JSON")
    arguments = parser.parse_intermixed_args(argv)
    found = plan(arguments.recipe, arguments.overrides)
    print("\n".join(in_words(found["sets"])))
    end = f"; the sets end after {found['ends']:,}" if found["ends"] is not None else ""
    print(
        f"{found['steps']:,} steps of {found['batch_size']:,}: {found['epochs']:.1f} epochs of "
        f"{found['steps_per_epoch']:,} steps, {found['draws']:,} images{end}"
    )
    print(f"plan {found['hash']}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0
