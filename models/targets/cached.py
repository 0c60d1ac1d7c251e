"""What a frozen network says of views, kept on disk: computed once for each sample and epoch, then read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError


class CachedTargets:
    """Float32 rows by (seed, epoch, sample) in a folder: ``<what>/<seed>/epoch-<n>.f32``, and beside it ``.known``, a
    byte a sample. `what` names the network, the view and the data set: targets of others are never taken for them.

    A view is a function of (seed, epoch, sample), so what is read is what would be computed: bit for bit what was
    computed then. Files grow with the samples that are seen. Processes write rows of their own into the same files.
    """

    def __init__(self, folder: str | Path, what: str, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.width = sum(prod(shape) for shape in self.shapes)
        name = hashlib.sha256(f"{what} {self.shapes}".encode()).hexdigest()[:16]
        self.folder = Path(folder).expanduser() / name
        self.computed = 0  # rows that were not there

    @torch.no_grad()
    def targets(
        self, seed: int, epochs: Tensor, ids: Tensor, device: torch.device, compute: Callable[[], list[Tensor]]
    ) -> list[Tensor]:
        """Of samples `ids` (B,) in `epochs` (B,), both on the CPU: a tensor (B, *shape) for each of `shapes`.

        `compute()` gives them for the whole batch, and is called where one is missing; then all are written.
        Raises `UserError` where the folder cannot be written.
        """
        rows = torch.empty(len(ids), self.width)
        found = [self._read(seed, epoch, ids[epochs == epoch]) for epoch in epochs.unique().tolist()]
        if all(part is not None for part in found):
            for epoch, part in zip(epochs.unique().tolist(), found):
                rows[epochs == epoch] = part
            rows = rows.to(device, non_blocking=True)
        else:
            rows = torch.cat([x.float().flatten(1) for x in compute()], dim=1)
            self.computed += len(ids)
            kept = rows.cpu()
            for epoch in epochs.unique().tolist():
                self._write(seed, epoch, ids[epochs == epoch], kept[epochs == epoch])
        parts = rows.split([prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape).contiguous() for part, shape in zip(parts, self.shapes)]

    def _paths(self, seed: int, epoch: int) -> tuple[Path, Path]:
        stem = self.folder / str(seed) / f"epoch-{epoch:05d}"
        return stem.with_suffix(".f32"), stem.with_suffix(".known")

    def _read(self, seed: int, epoch: int, ids: Tensor) -> Tensor | None:
        """(n, width), or None where one of them is not there."""
        values, known = self._paths(seed, epoch)
        try:
            flags = np.fromfile(known, np.uint8)
        except OSError:
            return None
        numbers = ids.numpy()
        if numbers.max() >= len(flags) or not flags[numbers].all():
            return None
        rows = np.memmap(values, np.float32, "r").reshape(-1, self.width)
        return torch.from_numpy(rows[numbers])

    def _write(self, seed: int, epoch: int, ids: Tensor, rows: Tensor) -> None:
        """Values first, then that they are there: what a kill leaves between the two is computed again."""
        values, known = self._paths(seed, epoch)
        try:
            values.parent.mkdir(parents=True, exist_ok=True)
            for path, size, data in (
                (values, 4 * self.width, [row.tobytes() for row in rows.numpy()]),
                (known, 1, [b"\1"] * len(ids)),
            ):
                with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                    for number, row in zip(ids.tolist(), data):
                        file.seek(number * size)
                        file.write(row)
        except OSError as fault:
            raise UserError(f"algorithm.cache: {values.parent} cannot be written ({fault.strerror})") from None
