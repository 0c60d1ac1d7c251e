"""A run as one HTML page that needs nothing else: ``headrace report <run>``.

Configuration with origins, curves, speed and waiting over time, views, masks, reconstructions, k-NN on the way,
environment, quarantine, checkpoints, warnings. Of a run that is not finished, or broken, what there is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ...models.algorithms import inputs_of
from ...pipelines.images.rules import use_rules
from ...pipelines.loaders.choose import choose_loader
from ...pipelines.sources import open_source
from ...pipelines.spec import ByteSource
from ...places import new_file, place
from ...train.engine.checkpoint import load_algorithm
from ...train.recipe.recipe import load_recipe
from ..look.reconstruct import Restoration, restore
from ..look.samples import Sample, first_samples
from .report_page import render_report
from .run_record import Record, read_record


def report(
    folder: Path, out: Path, *, data: str | None = None, samples: int = 4, results: Path | None = None
) -> Record:
    """Writes the page to `out`. `data` replaces the recipe's; `samples` 0 leaves pictures out.

    Raises `UserError` where there is no run, or where the page cannot be written.
    """
    record = read_record(folder, results)
    seen, restored = _pictures(record, data, samples)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_report(record, seen, restored), "utf-8", "replace")
    except OSError as fault:
        raise UserError(f"--out: {out} cannot be written ({fault.strerror}); give another file") from None
    return record


def _pictures(record: Record, data: str | None, samples: int) -> tuple[list[Sample] | str, Restoration | str]:
    """What training saw and what is restored of it; in place of either, why there is none."""
    if samples == 0:
        return ("Left out.",) * 2
    name = data or record.value("data.train")
    if name is None:
        return ("No data is named: give --data.",) * 2
    try:
        source = open_source(name)
        choose_loader(source, "memory")  # refuses streams, whose samples cannot be looked up
    except UserError as fault:
        return (f"The data cannot be read here: {fault}",) * 2
    return _or_why(_seen, record, source, samples), _or_why(_restored, record, source, samples)


def _or_why(part: Callable, record: Record, source: ByteSource, samples: int):
    """A report of a broken run is wanted most: whatever keeps one part from being made is said in its place."""
    try:
        return part(record, source, samples)
    except UserError as fault:
        return f"There are none: {fault}"
    except Exception as fault:
        return f"There are none: {type(fault).__name__}: {fault}"


def _seen(record: Record, source: ByteSource, samples: int) -> list[Sample]:
    recipe = load_recipe(str(record.folder / "config.yaml"), [])
    use_rules(recipe.data.rules)
    return first_samples(source, inputs_of(recipe.algorithm), samples, seed=recipe.train.seed)


def _restored(record: Record, source: ByteSource, samples: int) -> Restoration:
    if not record.checkpoints:
        raise UserError("no checkpoint has been written")
    path, algorithm = load_algorithm(record.folder)
    found = restore(algorithm, source, samples=2 * samples)  # small ones, and MixMIM pairs them
    return Restoration(found.rows, found.errors, f"By {path.name}. {found.note}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace report", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=place, help="a run directory, finished or not")
    parser.add_argument("--out", type=new_file, help="the page (report.html in the run directory)")
    parser.add_argument("--data", help="where the training data is now, if not where the recipe says")
    parser.add_argument("--samples", type=int, default=4, help="how many to show; 0 leaves pictures out (4)")
    parser.add_argument("--results", type=place, default="evaluation.jsonl", help="figures of evaluations to include")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.samples <= 32:
        raise UserError(f"--samples: from 0 to 32, not {arguments.samples}")
    if os.getcwd() not in sys.path:  # so that a recipe can name an algorithm beside it
        sys.path.append(os.getcwd())
    out = arguments.out or arguments.run / "report.html"
    record = report(arguments.run, out, data=arguments.data, samples=arguments.samples, results=arguments.results)
    print(f"{out}: {record.state}, {len(record.warnings())} warnings")
    return 0
