"""The samples of a run that were hardest and easiest for it, as a section of its page."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from ...errors import UserError
from ...models.algorithms import find_algorithm
from ...pipelines.images.decode import DecodeError, decode
from ...pipelines.spec import ByteSource
from ...train.ledger import read_ledger
from ..look import page
from .run_record import Record

SIDE = 128  # pixels of the longer side of a thumbnail
NONE = "No ledger was kept: train.ledger=true keeps the losses of single samples."
LEDGER_STYLE = """
.extremes { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .8rem;
  margin: .4rem 0 1rem; }
.extremes img { display: block; width: 100%; height: 112px; object-fit: contain; }
.extremes figcaption { overflow-wrap: anywhere; }
.extremes figcaption div { color: var(--soft); }
h3 { margin: .8rem 0 0; font-size: .95rem; }
"""


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
            figures = "\n".join(_figure(source, int(i), average[i], visits[i], pictures) for i in chosen)
            parts.append(f'<h3>{title}</h3>\n<div class="extremes">\n{figures}\n</div>')
    return page.section("Ledger", "\n".join(parts), " ".join(notes))


def _phrase(name: str) -> str | None:
    try:
        return find_algorithm(name).sample_loss
    except UserError:
        return None


def _figure(source: ByteSource | str, index: int, average: float, visits: int, pictures: bool) -> str:
    key, picture = f"sample {index:,}", ""
    if not isinstance(source, str):
        key = source.key(index)
        if pictures:
            picture = _thumbnail(source, index)
    said = f"<div>{average:.4f}, {visits:,} {'visit' if visits == 1 else 'visits'}</div>"
    return f"<figure>{picture}<figcaption>{escape(key)}{said}</figcaption></figure>"


def _thumbnail(source: ByteSource, index: int) -> str:
    try:
        image = Image.fromarray(decode(source.read(index)))
    except (OSError, DecodeError, UserError) as fault:
        return f"<p>{escape(str(fault))}</p>"
    image.thumbnail((SIDE, SIDE))
    return f'<img src="{page.data_uri(np.asarray(image), "JPEG", quality=85)}" alt="{escape(source.key(index))}">'
