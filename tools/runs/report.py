"""A run as one HTML page that needs nothing else: ``headrace report <run>``.

Configuration with origins, curves, speed and waiting over time, views, masks, reconstructions, k-NN on the way,
environment, quarantine, checkpoints, warnings, the hardest and easiest samples. Of a run that is not finished, or
broken, what there is.
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
from ...pipelines.plan.given import as_source
from ...pipelines.spec import ByteSource
from ...places import new_file, place, write_file
from ...train.engine.checkpoint import load_algorithm
from ...train.recipe.recipe import load_recipe
from ..look.reconstruct import Restoration, restore
from ..look.samples import Sample, first_samples
from .report_ledger import NONE, has_ledger, ledger_section
from .report_page import render_report
from .run_record import Record, read_record


def report(
    folder: Path,
    out: Path,
    *,
    data: str | None = None,
    samples: int = 4,
    results: Path | None = None,
    hardest: int = 12,
    easiest: int = 12,
) -> Record:
    """Writes the page to `out`. `data` replaces the recipe's; `samples` 0 leaves pictures out; `hardest` and `easiest`
    are how many samples of a ledger are shown.

    Raises `UserError` where there is no run, or where the page cannot be written.
    """
    record = read_record(folder, results)
    source = _source(record, data) if samples or has_ledger(record) else "Left out."
    seen, restored = _pictures(record, source, samples)
    ledger = ledger_section(record, source, hardest, easiest, pictures=samples > 0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, render_report(record, seen, restored, ledger).encode("utf-8", "replace"))
    except OSError as fault:
        raise UserError(f"--out: {out} cannot be written ({fault.strerror}); give another file") from None
    return record


def _source(record: Record, data: str | None) -> ByteSource | str:
    """The images, or why they are not at hand."""
    try:
        mix, name = None, data or record.value("data.train")
        if name is None and any(key.startswith("data.train.") for key in record.settings):  # several sets
            own = load_recipe(str(record.folder / "config.yaml"), []).data
            name, mix = own.train, own.mix
        if name is None:
            return "No data is named: give --data."
        source = as_source(name, mix)
        choose_loader(source, "memory")  # refuses streams, whose samples cannot be looked up
    except UserError as fault:
        return f"The data cannot be read here: {fault}"
    return source


def _pictures(record: Record, source: ByteSource | str, samples: int) -> tuple[list[Sample] | str, Restoration | str]:
    """What training saw and what is restored of it; in place of either, why there is none."""
    if samples == 0 or isinstance(source, str):
        return ("Left out." if samples == 0 else source,) * 2
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
    parser.add_argument("--hardest", type=int, metavar="N", help="samples of the largest losses in its ledger (12)")
    parser.add_argument("--easiest", type=int, metavar="N", help="samples of the smallest (12)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.samples <= 32:
        raise UserError(f"--samples: from 0 to 32, not {arguments.samples}")
    extremes = {key: value for key in ("hardest", "easiest") if (value := getattr(arguments, key)) is not None}
    for key, value in extremes.items():
        if not 0 <= value <= 1000:
            raise UserError(f"--{key}: from 0 to 1000, not {value}")
    if os.getcwd() not in sys.path:  # so that a recipe can name an algorithm beside it
        sys.path.append(os.getcwd())
    out = arguments.out or arguments.run / "report.html"
    options = {"data": arguments.data, "samples": arguments.samples, "results": arguments.results, **extremes}
    record = report(arguments.run, out, **options)
    print(f"{out}: {record.state}, {len(record.warnings())} warnings")
    if extremes and not has_ledger(record):
        print(NONE)
    return 0
