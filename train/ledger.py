"""The ledger of a run: of each sample the loss when it was last seen, an average, how often it was seen, and when.

The folder `FOLDER` of the run directory holds a column a file, in the order of the source, so that it is a table for
whatever reads columns from ``NAME.npy``.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..models.algorithms import find_algorithm
from ..pipelines.plan.columns import IMAGES
from ..pipelines.plan.follow import Frozen, columns_of, follow, unseen
from ..pipelines.plan.sets import PlannedSource
from ..pipelines.spec import ByteSource, Loader
from .engine.distributed import Launch
from .engine.run_directory import write_whole

FOLDER = "ledger"
MOVING = 0.1  # what a visit moves the average by, from the tenth visit on; before that it is the mean
COLUMNS = {  # 16 bytes a sample
    "loss": np.float32,  # of the last visit; NaN before the first
    "average": np.float32,  # of the losses; NaN before the first visit
    "visits": np.uint32,
    "step": np.uint32,  # finished steps after the last visit; 0 before the first
}


def require_sample_loss(name: str) -> None:
    """Raises `UserError` for an algorithm that has no loss of single samples."""
    if find_algorithm(name).sample_loss is None:
        raise UserError(f"train.ledger: {name} has no loss of single samples (sample_loss); leave train.ledger out")


class Ledger:
    """Keeps what steps say on the device until `flush`; the first process alone has the columns and writes them.

    `rows` are those of a checkpoint, see `state`; None begins anew. `images` says which images they are about, see
    `images_of`. Raises `UserError` where files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        samples: int,
        process: Launch,
        rows: torch.Tensor | None = None,
        images: Mapping[str, int | str] | None = None,
    ) -> None:
        self._process = process
        self._pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._columns = _made(folder, samples, rows) if process.is_main else {}
        if process.is_main and images is not None:
            write_whole(folder / IMAGES, json.dumps(images).encode())

    def add(self, step: int, ids: torch.Tensor, losses: torch.Tensor, skipped: torch.Tensor) -> None:
        """Losses (B,) of samples `ids` (B,) in a step, counted from 0, that was left out where `skipped` (a scalar) is
        1. No host synchronisation."""
        self._pending.append((step, ids, torch.where(skipped > 0, float("nan"), losses)))

    def flush(self) -> None:
        """Writes what has come since the last time. A collective: every process calls it after the same step."""
        if not self._pending:
            return
        steps, ids, losses = zip(*self._pending)
        self._pending, sizes = [], [len(each) for each in ids]
        everyone = zip(self._process.gather(torch.cat(ids)), self._process.gather(torch.cat(losses).cpu()))
        if not self._process.is_main:
            return
        parts = [(own.split(sizes), values.split(sizes)) for own, values in everyone]
        for number, step in enumerate(steps):
            seen = (torch.cat([part[column][number] for part in parts]).numpy() for column in (0, 1))
            self._write(step + 1, *seen)

    def _write(self, finished: int, ids: np.ndarray, losses: np.ndarray) -> None:
        """One step; what is not finite, of steps left out or of samples without a loss, leaves no trace."""
        columns, known = self._columns, np.isfinite(losses)
        ids, losses = ids[known], losses[known]
        while len(ids):  # once, but for a sample that is in the batch twice
            own, first = np.unique(ids, return_index=True)
            loss, before, visits = losses[first], columns["average"][own], columns["visits"][own] + np.uint32(1)
            share = np.maximum(np.float32(1) / visits.astype(np.float32), np.float32(MOVING))
            columns["loss"][own], columns["visits"][own], columns["step"][own] = loss, visits, finished
            columns["average"][own] = np.where(visits == 1, loss, before + share * (loss - before))
            ids, losses = np.delete(ids, first), np.delete(losses, first)

    def freeze(self, step: int, names: Iterable[str]) -> Frozen:
        """Some columns as they are after `step` finished steps, on every process: a collective, after `flush`."""
        own = {name: _plain(self._columns[name]) for name in names} if self._process.is_main else {}
        return Frozen(step, self._process.from_main(own))

    def state(self) -> torch.Tensor:
        """(4, 4 N) uint8: the bytes of the columns, for a checkpoint. On the first process, after `flush`."""
        return torch.from_numpy(np.stack([self._columns[name].view(np.uint8) for name in COLUMNS]))


def renewal(
    ledger: Ledger,
    loader: Loader,
    process: Launch,
    save: Callable[[int], None],
    say: Callable[[str], None],
) -> Callable[[int], None] | None:
    """What is to be called before the first step of each epoch, where sets follow the ledger: ``renew(step)`` freezes
    it, and gives the loader the order that follows from that. Where that leaves nothing to read, it saves the step and
    raises `UserError`: nothing is lost, and another plan can go on from there."""
    source = getattr(loader, "source", None)
    if not isinstance(source, PlannedSource) or not (names := columns_of(source)):
        return None

    def renew(step: int) -> None:
        ledger.flush()
        frozen = ledger.freeze(step, names)
        try:
            order = follow(loader.order, source, frozen)
        except UserError:
            save(step)
            raise
        loader.reorder(order)
        for planned, part in zip(source.plan, order.parts):
            if planned.follow and planned.follow.where:
                where = planned.spec.where
                say(f"{planned.name}: {part.size:,} of {part.samples:,} images where {where}, from step {step:,} on")

    return renew


def _plain(column: np.ndarray) -> np.ndarray:
    """A copy, in types that a checkpoint holds."""
    return column.astype(np.float32 if column.dtype == np.float32 else np.int32)


def frozen_state(frozen: Frozen) -> dict:
    """For a checkpoint; see `frozen_in`."""
    return {"step": frozen.step, "columns": {name: torch.from_numpy(values) for name, values in frozen.columns.items()}}


def frozen_in(state: dict, step: int, source: ByteSource, changed: bool) -> Frozen:
    """The ledger that the order of a run follows that continues at `step` from a checkpoint: what was frozen then, and
    where the plan has changed since, what the checkpoint says of the samples."""
    names = columns_of(source)
    saved = state.get("plan", {}).get("frozen")
    if saved is not None and not changed and not set(names) - saved["columns"].keys():
        return Frozen(saved["step"], {name: saved["columns"][name].numpy() for name in names})
    if (rows := state.get("ledger")) is None:
        return Frozen(step, unseen(len(source)).columns)
    kinds = {name: (number, kind) for number, (name, kind) in enumerate(COLUMNS.items())}
    return Frozen(step, {name: _plain(rows[kinds[name][0]].numpy().view(kinds[name][1])) for name in names})


def _made(folder: Path, samples: int, rows: torch.Tensor | None) -> dict[str, np.memmap]:
    """Each column written whole, so that its blocks are there whenever the disk is full, and then mapped."""
    columns, new = {}, not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as fault:
        raise UserError(f"{folder}: cannot be written ({fault.strerror}); choose another train.out") from None
    try:
        for number, (name, kind) in enumerate(COLUMNS.items()):
            values = np.full(samples, np.nan if kind == np.float32 else 0, kind)
            if rows is not None:
                values = rows[number].numpy().view(kind)
            buffer = io.BytesIO()
            np.save(buffer, values)
            file = folder / f"{name}.npy"
            write_whole(file, buffer.getvalue())
            columns[name] = np.load(file, mmap_mode="r+")
    except UserError:
        if new:
            shutil.rmtree(folder)
        raise
    return columns


def read_ledger(folder: Path) -> dict[str, np.ndarray] | None:
    """The columns of a run directory, of which others may still be written; None where there is none.

    Raises `UserError` for files that are no ledger.
    """
    files = {name: folder / FOLDER / f"{name}.npy" for name in COLUMNS}
    if not any(file.exists() for file in files.values()):
        return None
    try:
        columns = {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
    except (OSError, ValueError) as fault:
        raise UserError(f"{folder / FOLDER}: cannot be read ({fault})") from None
    if len({column.shape for column in columns.values()}) > 1 or columns["loss"].ndim != 1:
        raise UserError(f"{folder / FOLDER}: its columns are not of one length")
    return columns
