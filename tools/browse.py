"""What training will see: ``headrace browse <data> <recipe>`` leaves a contact sheet and a page to look through.

Both show the first samples of an epoch, from the recipe's own draws: the whole image with its crops outlined, every
view, the mask, and in words what was drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..errors import UserError
from ..models.algorithms import find_algorithm
from ..pipelines.loaders import choose_loader
from ..pipelines.sources import open_source
from ..train.pretrain import load_recipe
from .browse_page import render_page
from .plots import plot_samples
from .samples import first_samples

MOST_SAMPLES = 100  # a page with more is too large to look through, and a sheet too tall for a PNG viewer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace browse", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("data", help="a folder of shards or of images, or any other source")
    add("recipe", help="a YAML file, or the name of a packaged recipe such as mae_vit-tiny")
    add("overrides", nargs="*", metavar="section.key=value", help="e.g. algorithm.view.size=96")
    add("--out", type=Path, default=Path("."), metavar="DIR", help="where browse.png and browse.html go (here)")
    add("--samples", type=int, default=8, metavar="N", help="how many (%(default)s)")
    add("--epoch", type=int, default=0, metavar="E", help="counted from 0 (%(default)s)")
    add("--seed", type=int, metavar="S", help="of order, views and masks (the recipe's train.seed)")
    given = parser.parse_intermixed_args(argv)
    if os.getcwd() not in sys.path:  # so that a recipe can name an algorithm beside it
        sys.path.append(os.getcwd())
    for path in browse(
        given.data,
        given.recipe,
        given.overrides,
        given.out,
        samples=given.samples,
        epoch=given.epoch,
        seed=given.seed,
    ):
        print(path)
    return 0


def browse(
    data: str,
    recipe: str,
    overrides: list[str],
    out: Path,
    *,
    samples: int = 8,
    epoch: int = 0,
    seed: int | None = None,
) -> tuple[Path, Path]:
    """Writes `out`/browse.png and `out`/browse.html and returns their paths.

    Raises `UserError` for data or a recipe that cannot be read, and for numbers out of range.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"--samples: from 1 to {MOST_SAMPLES}, not {samples}")
    if epoch < 0:
        raise UserError(f"--epoch: counted from 0, so {epoch} cannot be")
    settings = load_recipe(recipe, overrides)
    seed = settings.train.seed if seed is None else seed
    source = open_source(data)
    choose_loader(source, "memory")  # refuses streams, whose samples cannot be looked up
    inputs = find_algorithm(settings.algorithm.name)(settings.algorithm).inputs()
    shown = first_samples(source, inputs, samples, seed=seed, epoch=epoch)
    facts = {
        "data": f"{source.name}, {len(source):,} images",
        "recipe": f"{settings.name} ({settings.algorithm.name})",
        "epoch": f"{epoch}, seed {seed}",
        "views": ", ".join(f"{view.count} × {view.name} at {view.size} px" for view in inputs.views),
    }
    if inputs.mask is not None:
        rows, columns = inputs.mask.grid
        rule = type(inputs.mask).__name__.removesuffix("Mask").lower()
        count = "a varying number" if inputs.mask.hidden is None else inputs.mask.hidden
        facts["mask"] = f"{rule}, {count} of {rows} × {columns} patches"
    picture, page = out / "browse.png", out / "browse.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        plot_samples(shown, picture, "; ".join(f"{name}: {fact}" for name, fact in facts.items()))
        page.write_text(render_page(shown, facts), encoding="utf-8")
    except OSError as fault:
        raise UserError(f"--out: {out} cannot be written ({fault.strerror}); give another folder") from None
    return picture, page
