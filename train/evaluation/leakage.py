"""Validation images that are training images as well, as far as `headrace know` has written it down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ...pipelines.measure.store import AGAINST, FOLDER, about
from ...pipelines.plan.columns import folder_beside
from ...pipelines.plan.sets import Planned, PlannedSource
from ...pipelines.sources.stream import StreamSource
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource


class _Table(NamedTuple):
    """A folder of columns that may say what training has of other sets."""

    folder: Path
    name: str  # of the images that it is about
    kept: np.ndarray | None = None  # which of them training has, in numbers; None: all


def leak_remarks(train: ByteSource, val: ByteSource) -> list[str]:
    """A sentence for each table of training images that says that they are images of this validation set.

    Tables lie beside the images; of a data plan's sets beside each of them, or where the plan says. A set whose filter
    lets no such image through has no part in it.
    """
    if isinstance(train, StreamSource) or isinstance(val, StreamSource):
        return []
    own, found = about(val), []
    for table in _tables(train):
        try:
            overlaps = json.loads((table.folder / FOLDER / AGAINST).read_bytes())
        except (OSError, ValueError):  # no such table
            continue
        known = [one for one in overlaps if one["found"] and one["about"] == own]
        if not known or not (left := _left(table)):
            continue
        most = "up to " if left == "some" else ""
        found += [
            f"{most}{one['found']:,} of {len(val):,} images of {val.name} are in {table.name}, or nearly, as headrace "
            "know found, so these figures are partly of images that were learned from; "
            'where: "not leaked" leaves them out of training'
            for one in known
        ]
    return found


def _tables(train: ByteSource) -> Iterator[_Table]:
    while isinstance(train, Subset):
        train = train.source
    if not isinstance(train, PlannedSource):
        yield from _beside(train.name, train.name)
        return
    for planned in train.plan:
        name = f"{planned.spec.source} of {train.name}"
        kept = _kept(planned)
        yield from _beside(planned.spec.source, name, kept)
        if planned.spec.table is not None:
            yield _Table(Path(planned.spec.table).expanduser(), name, kept)
    if train.name != " + ".join(train.names):  # a file, beside which there may be a table of the sets as they were
        yield from (table for table in _beside(train.name, train.name) if _is_about(table.folder, train))


def _beside(source: str, name: str, kept: np.ndarray | None = None) -> Iterator[_Table]:
    try:
        yield _Table(folder_beside(source), name, kept)
    except UserError:  # it lies nowhere
        return


def _kept(planned: Planned) -> np.ndarray | None:
    """The samples of a set that its filter lets through; None without one, and with one that a run decides anew."""
    return np.asarray(planned.source.ids) if planned.spec.where and planned.follow is None else None


def _left(table: _Table) -> str:
    """How many of the images in question training has: "all", "some", or "" for none."""
    if table.kept is None:
        return "all"
    try:
        leaked = np.load(table.folder / "leaked.npy", mmap_mode="r", allow_pickle=False)
        there = int(leaked.sum()), int(leaked[table.kept].sum())
    except (OSError, ValueError, IndexError):
        return "some"
    return ("all" if there[0] == there[1] else "some") if there[1] else ""


def _is_about(folder: Path, source: ByteSource) -> bool:
    try:
        return json.loads((folder / FOLDER / "about.json").read_bytes()) == about(source)
    except (OSError, ValueError):
        return False
