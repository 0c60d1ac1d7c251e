"""Where the time goes between disk and model, and what would help: ``headrace doctor <data> <recipe>``.

`measure.py` measures, `advice.py` draws the conclusions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ...errors import UserError
from ...pipelines.images.rules import use_rules
from ...pipelines.sources import open_source
from ...places import new_file
from ...train.recipe.recipe import load_recipe
from ..columns import aligned
from .advice import PREPARATION, Measured, Timing, advise
from .measure import measure
from .packages import versions


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace doctor", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("data", help="a folder of shards or of images, or any other source")
    add("recipe", help="a YAML file, or the name of a packaged recipe such as mae_vit-tiny")
    add("overrides", nargs="*", metavar="section.key=value", help="e.g. data.threads=8")
    add("--seconds", type=float, default=40, metavar="S", help="to measure for, besides starting up (%(default)s)")
    add("--model", action="store_true", help="time the training step, too, alone and fed by the loader")
    add("--json", type=new_file, metavar="FILE", help="write everything measured and advised there")
    given = parser.parse_intermixed_args(argv)
    if not 0 < given.seconds <= 3600:
        raise UserError(f"--seconds: more than 0 and at most 3600, not {given.seconds:g}")
    recipe = load_recipe(given.recipe, given.overrides)
    use_rules(recipe.data.rules)
    measured = measure(open_source(given.data), recipe, given.seconds, given.model)
    advice = advise(measured)
    installed = versions()
    if given.json:
        report = {
            "data": given.data,
            "recipe": recipe.name,
            "versions": installed,
            **asdict(measured),
            "advice": advice,
        }
        try:
            given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as fault:
            raise UserError(f"{given.json}: cannot be written ({fault.strerror}); choose another file") from None
    print("\n".join([*_setting(given.data, recipe.name, measured, installed), "", *table(measured), "", *advice]))
    return 0


def _setting(data: str, recipe: str, measured: Measured, installed: dict[str, str]) -> list[str]:
    return [
        f"{recipe} on {data}: {measured.images:,} images of {measured.image_bytes / 1e3:,.0f} kB, "
        f"{measured.width:,.0f} x {measured.height:,.0f} px on average",
        f"{measured.cores} cores, {measured.threads} decoding threads, {measured.torch_threads} torch threads, "
        f"{measured.memory / 1e9:,.0f} GB of memory, {measured.gpu or 'no GPU'}",
        ", ".join(f"{name} {version}" for name, version in installed.items()),
    ]


def table(measured: Measured) -> list[str]:
    """Lines for a terminal: one a stage, with times per image and rates."""
    rows = [("", "us per image", "p20 - p80", "images/s", "MB/s")]

    def add(name: str, timing: Timing, reads: bool = False) -> None:
        speed = f"{measured.image_bytes / timing.median:,.0f}" if reads else ""
        spread = f"{timing.p20:,.0f} - {timing.p80:,.0f}"
        rows.append((name, f"{timing.median:,.0f}", spread, f"{timing.rate:,.0f}", speed))

    for name in ("read, cold", *PREPARATION, "copy to GPU"):
        if name in measured.stages:
            add(name, measured.stages[name], reads=name.startswith("read"))
    add("all but cold, together", measured.together)
    for kind, timing in measured.loaders.items():
        add(f"loader {kind}{' (chosen)' if kind == measured.loader else ''}", timing)
    for form, timing in measured.pixels.items():
        add(f"loader cpu, {form} pixels", timing)
    if measured.model is not None:
        add("model", measured.model)
        add(f"model + loader {measured.loader}", measured.training)
    share = measured.together.median / measured.parts
    return [
        *aligned(rows),
        f"stages on one thread; their sum is {measured.parts:,.0f} us, together they take {share:.0%} of it",
    ]
