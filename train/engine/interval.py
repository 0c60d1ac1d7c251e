"""What is summed on the device between two logging steps, of each of several sets too, and the warning of collapse."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from ...models.algorithm import StepOutput
from ...models.meters import meters
from ...pipelines.loaders.device import to_device
from ...pipelines.plan.mixture import MixedOrder
from ...pipelines.spec import Loader
from .distributed import Launch

_COLLAPSED = 0.01  # of `spread`; independent directions have 1, a network that has just been initialised about 0.1


class OfSets:
    """Sums between two logging steps; `add` is a `Note` of steps. Nothing waits for the device but `row`."""

    def __init__(self, order: MixedOrder, launch: Launch, loader: Loader, first_step: int) -> None:
        self._order, self._launch, self._loader, self._step = order, launch, loader, first_step
        self._sums = torch.zeros(2, len(order.parts), device=launch.device)  # of losses, and of samples that have one
        self._waits = loader.stats().set_waits.copy()

    def add(self, step: int, ids: Tensor, losses: Tensor, skipped: Tensor) -> None:
        (origin,) = to_device([self._order.origin(ids)], losses.device)
        known = losses.isfinite() & (skipped == 0)
        self._sums.index_add_(1, origin, torch.stack([torch.where(known, losses, 0.0), known.float()]))

    def row(self, step: int, seconds: float) -> dict[str, dict[str, float]]:
        """Of each set by name: ``images`` read since the last row, their ``loss`` where samples have one, ``data_wait``
        as a share of the `seconds` since then, ``bad`` images known. A collective."""
        if self._launch.world > 1:
            dist.all_reduce(self._sums)
        (losses, counts), stats = self._sums.tolist(), self._loader.stats()
        before, after = self._order.given(self._step), self._order.given(step)
        rows = {}
        for number, name in enumerate(after):
            own = {"images": after[name] - before[name]}
            if counts[number]:
                own["loss"] = losses[number] / counts[number]
            if self._waits:
                own["data_wait"] = (stats.set_waits[number] - self._waits[number]) / seconds
                own["bad"] = stats.set_bad[number]
            rows[name] = own
        self._step = step
        self._sums.zero_()
        return rows

    def restart(self) -> None:
        """Forgets waits that belong to no step. Losses stay: those of steps are in `row` by then."""
        self._waits = self._loader.stats().set_waits.copy()


class Interval:
    """Means between two logging steps, over the steps that were taken."""

    def __init__(self, launch: Launch, batch_size: int, loader: Loader, of_sets: OfSets | None = None) -> None:
        self._of_sets = of_sets
        self._launch, self._batch_size, self._loader = launch, batch_size, loader
        self._collapsed = 0
        self.restart()

    def restart(self) -> None:
        """Forgets what came before: time that belongs to no step is not counted."""
        self._steps, self._taken, self._sums = 0, 0, {}
        self._began, self._waited = time.perf_counter(), self._loader.stats().wait_seconds
        if self._of_sets is not None:
            self._of_sets.restart()

    def add(self, output: StepOutput) -> None:
        """No host synchronisation."""
        self._steps += 1
        self._last = output
        values = {"loss": output.loss.detach(), **output.metrics}
        skipped = values.pop("skipped")
        self._taken = self._taken + (1 - skipped)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(skipped > 0, 0.0, value.detach().float())

    def row(self, step: int, epoch: int, lr: float, total_steps: int, skipped_in_row: Tensor) -> dict:
        """Means over the interval and over ranks; starts the next interval."""
        means = torch.stack(list(self._sums.values())) / self._taken
        if self._launch.world > 1:
            dist.all_reduce(means)
            means /= self._launch.world
        # the one synchronisation of the interval
        taken, in_row, loss, *metrics = torch.stack([self._taken, skipped_in_row, *means.unbind()]).tolist()
        seconds = time.perf_counter() - self._began
        row = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "lr": float(lr),
            "images_per_s": self._batch_size * self._steps / seconds,
            "data_wait": (self._loader.stats().wait_seconds - self._waited) / seconds,
            "eta_s": (total_steps - step) * seconds / self._steps,
            "metrics": dict(zip(list(self._sums)[1:], metrics)),
        }
        if taken < self._steps:
            row |= {"skipped": round(self._steps - taken), "skipped_in_row": round(in_row)}
        if self._of_sets is not None:
            row["sets"] = self._of_sets.row(step, seconds)
        row["metrics"] |= meters(self._last)
        self.restart()
        return row

    def warning(self, row: dict) -> str | None:
        """Once, when three rows in a row show embeddings that are all but equal."""
        spread = row["metrics"].get("spread")
        self._collapsed = self._collapsed + 1 if spread is not None and spread < _COLLAPSED else 0
        if self._collapsed != 3:
            return None
        return (
            f"step {row['step']}: the embeddings of different images are all but the same (spread {spread:.4f}, random "
            "directions have 1): the training has collapsed. Try a lower optim.lr, a longer warm-up or a larger batch"
        )
