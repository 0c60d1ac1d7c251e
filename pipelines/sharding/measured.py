"""What is measured while images are packed: near duplicates are left out, and columns lie beside the shards."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...places import write_file
from ..measure.groups import duplicate_groups, kept_of
from ..measure.store import FOLDER, Store, about, load, put_together
from ..plan.columns import folder_beside, write_columns
from ..sources.shards import ShardSource
from ..workers import run_jobs
from .progress import counter
from .workspace import Workspace

if TYPE_CHECKING:
    from ..spec import ByteSource


def without_near_duplicates(source: ByteSource, folder: Path, workers: int, shown: bool) -> np.ndarray:
    """Ids of the images to keep: one of each group of near duplicates (`kept_of`), and all others.

    Every image is decoded for that. What was measured lies in `folder`, so an interrupted run goes on from there.
    """
    store = Store(folder, source)
    store.begin()
    while (found := store.finish()) is None:
        jobs = store.jobs()
        with counter("measuring", sum(map(len, jobs)), shown) as count:
            run_jobs(store, jobs, max(1, min(workers, len(jobs))), count)
    return np.flatnonzero(kept_of(duplicate_groups(found.pictures), found.rows))


def publish_measurements(out: Path, workspace: Workspace) -> None:
    """Makes the table of a finished data set from what its shards' writers have measured, if they have.

    Everything can be repeated, also by several processes at once. Raises `FileNotFoundError` where one that was faster
    has tidied up meanwhile.
    """
    files = sorted(workspace.folder.glob("[0-9]*.npz"))
    if not files:
        return
    source, table = ShardSource(out), folder_beside(out)
    place = table / FOLDER
    if not (place / "bad.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        write_file(place / "about.json", json.dumps(about(source), indent=1).encode())
        put_together(place, files, len(source))
    rows = load(table).rows
    if len(rows) != len(source):
        raise FileNotFoundError(errno.ENOENT, "measurements of a shard are gone", str(workspace.folder))
    write_columns(table, source, {name: np.array(rows[name]) for name in rows.dtype.names})
