"""The samples of a run that were hardest and easiest for it, as a section of its page."""

from __future__ import annotations

import numpy as np

from ...errors import UserError
from ...models.algorithms import find_algorithm
from ...pipelines.spec import ByteSource
from ...train.ledger import read_ledger
from ..look import page
from ..look.pictures import gallery, picture_html
from .run_record import Record

NONE = "No ledger was kept: train.ledger=true keeps the losses of single samples."


def has_ledger(record: Record) -> bool:
    """Whether this run keeps one, and has."""
    return record.value("train.ledger") == "true" and (record.folder / "ledger").is_dir()


def ledger_section(record: Record, source: ByteSource | str, hardest: int, easiest: int, *, pictures: bool) -> str:
    """Of as many samples by their average loss: picture, key, average, visits; those never seen are neither.

    `source`: the images, or why there are none. What cannot be read is said in its place.
    """
    if not has_ledger(record):
        return page.section("Ledger", "", NONE)
    try:
        columns = read_ledger(record.folder)
    except UserError as fault:
        return page.section("Ledger", "", f"It cannot be read: {fault}")
    average, visits = columns["average"], columns["visits"]
    seen = np.flatnonzero(np.isfinite(average))
    ranked = seen[np.argsort(average[seen], kind="stable")]
    mean = visits[seen].mean() if len(seen) else 0
    notes = [f"{len(seen):,} of {len(average):,} samples were seen, {mean:.1f} times each."]
    if (name := record.value("algorithm.name")) and (phrase := _phrase(name)):
        notes.append(f"A sample's loss: {phrase}; shown is the average over its visits.")
    if not isinstance(source, str) and len(source) != len(average):
        source = f"The data has {len(source):,} images now, the ledger {len(average):,}: give --data."
    if isinstance(source, str):
        notes.append(source)
    parts = []
    for title, chosen in (("Hardest", ranked[::-1][:hardest]), ("Easiest", ranked[:easiest])):
        if len(chosen):
            figures = [_figure(source, int(i), average[i], visits[i], pictures) for i in chosen]
            parts.append(f"<h3>{title}</h3>\n{gallery(figures)}")
    return page.section("Ledger", "\n".join(parts), " ".join(notes))


def _phrase(name: str) -> str | None:
    try:
        return find_algorithm(name).sample_loss
    except UserError:
        return None


def _figure(source: ByteSource | str, index: int, average: float, visits: int, pictures: bool) -> tuple[str, str, str]:
    said = f"{average:.4f}, {visits:,} {'visit' if visits == 1 else 'visits'}"
    if isinstance(source, str):
        return "", f"sample {index:,}", said
    return picture_html(source, index) if pictures else "", source.key(index), said
