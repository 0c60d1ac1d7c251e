"""What training will see: ``headrace browse <data> <recipe>`` leaves a contact sheet and a page to look through.

``headrace browse <data> --views simclr --mask block`` shows named views without a recipe. Both files show the first
samples of an epoch, from the recipe's own draws: the whole image with its crops outlined, every view, the mask, and in
words what was drawn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ...models.algorithms import inputs_of
from ...pipelines.images.rules import use_rules
from ...pipelines.loaders.choose import choose_loader
from ...pipelines.sources import open_source
from ...pipelines.spec import (
    BlockMask,
    CellMask,
    InputSpec,
    MaskSpec,
    RandomMask,
    SharedMask,
    TargetBlocksMask,
    VariedMask,
)
from ...pipelines.views.recipes import VIEWS, view
from ...places import new_folder, write_file
from ...train.recipe.recipe import load_recipe
from .browse_page import render_page
from .plots import plot_samples
from .samples import first_samples

MASKS: dict[str, Callable[[int], MaskSpec]] = {  # of a view so many pixels wide
    "random": lambda size: RandomMask((size // 16,) * 2),
    "cell": lambda size: CellMask((size // 4,) * 2),
    "block": lambda size: BlockMask((size // 16,) * 2, count=round((size // 16) ** 2 * 75 / 196)),
    "shared": lambda size: SharedMask((size // 32,) * 2),
    "targets": lambda size: TargetBlocksMask((size // 16,) * 2),
    "varied": lambda size: VariedMask((size // 16,) * 2),
}
MOST_SAMPLES = 100  # a page with more is too large to look through, and a sheet too tall for a PNG viewer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace browse", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("data", help="a folder of shards or of images, or any other source")
    add("recipe", nargs="?", help="a YAML file, or the name of a packaged recipe such as mae_vit-tiny")
    add("overrides", nargs="*", metavar="section.key=value", help="e.g. algorithm.view.size=96")
    add("--views", metavar="NAME", help="instead of a recipe, views by name: simclr, beit, byol.first, ...")
    add("--mask", choices=sorted(MASKS), help="a mask over the first of --views, as its paper has it")
    add("--out", type=new_folder, default=".", metavar="DIR", help="where browse.png and browse.html go (here)")
    add("--samples", type=int, default=8, metavar="N", help="how many (%(default)s)")
    add("--epoch", type=int, default=0, metavar="E", help="counted from 0 (%(default)s)")
    add("--seed", type=int, metavar="S", help="of order, views and masks (the recipe's train.seed)")
    given = parser.parse_intermixed_args(argv)
    for path in browse(
        given.data,
        given.recipe,
        given.overrides,
        given.out,
        samples=given.samples,
        epoch=given.epoch,
        seed=given.seed,
        views=given.views,
        mask=given.mask,
    ):
        print(path)
    return 0


def browse(
    data: str,
    recipe: str | None,
    overrides: list[str],
    out: Path,
    *,
    samples: int = 8,
    epoch: int = 0,
    seed: int | None = None,
    views: str | None = None,
    mask: str | None = None,
) -> tuple[Path, Path]:
    """Writes `out`/browse.png and `out`/browse.html and returns their paths.

    Either a recipe, or `views` by name and perhaps one of `MASKS`.

    Raises `UserError` for data or a recipe that cannot be read, and for numbers out of range.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"--samples: from 1 to {MOST_SAMPLES}, not {samples}")
    if epoch < 0:
        raise UserError(f"--epoch: counted from 0, so {epoch} cannot be")
    if (recipe is None) == (views is None):
        raise UserError("browse: needs a recipe or --views, one of the two, e.g. headrace browse photos --views simclr")
    if views is not None:
        inputs, shown_as, seed = _named(views, mask), views, seed or 0
    elif mask is not None:
        raise UserError("--mask: belongs to --views; a recipe has its algorithm's own mask")
    else:
        settings = load_recipe(recipe, overrides)
        use_rules(settings.data.rules)
        inputs = inputs_of(settings.algorithm)
        shown_as = f"{settings.name} ({settings.algorithm.name})"
        seed = settings.train.seed if seed is None else seed
    source = open_source(data)
    choose_loader(source, "memory")  # refuses streams, whose samples cannot be looked up
    shown = first_samples(source, inputs, samples, seed=seed, epoch=epoch)
    facts = {
        "data": f"{source.name}, {len(source):,} images",
        "recipe": shown_as,
        "epoch": f"{epoch}, seed {seed}",
        "views": ", ".join(f"{view.copies} × {view.name} at {view.side} px" for view in inputs.views),
    }
    if inputs.mask is not None:
        rows, columns = inputs.mask.grid
        rule = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(inputs.mask).__name__.removesuffix("Mask")).lower()
        count = "a varying number" if inputs.mask.hidden is None else inputs.mask.hidden
        facts["mask"] = f"{rule}, {count} of {rows} × {columns} patches"
    picture, page = out / "browse.png", out / "browse.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        plot_samples(shown, picture, "; ".join(f"{name}: {fact}" for name, fact in facts.items()))
        write_file(page, render_page(shown, facts).encode("utf-8", "replace"))
    except OSError as fault:
        raise UserError(f"--out: {out} cannot be written ({fault.strerror}); give another folder") from None
    return picture, page


def _named(views: str, mask: str | None) -> InputSpec:
    """The views of that name, all of a method's or one of them, and the mask over the first."""
    try:
        found = VIEWS[views] if views in VIEWS else (replace(view(views), draws=None),)
    except ValueError as fault:
        raise UserError(f"--views: {fault}") from None
    try:
        return InputSpec(found, MASKS[mask](found[0].size) if mask else None)
    except ValueError as fault:
        raise UserError(f"--mask: {mask} does not fit a view of {found[0].size} px: {fault}") from None
