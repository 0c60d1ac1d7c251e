"""Sets that follow the ledger of their own run: what an epoch reads of them depends on the losses before it.

At the start of each epoch the ledger's columns are frozen, and with them which samples these sets give and how often.
So the order of an epoch stays a function of (seed, step, what is frozen), which a checkpoint keeps. How many images
each set gives at which step does not change, nor does which row of the ledger a sample has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ...errors import UserError
from .favour import Favour
from .where import Where

if TYPE_CHECKING:
    from .mixture import MixedOrder
    from .sets import PlannedSource

# name in a filter or as a weight -> column of the ledger that it is, or is made of
LEDGER = {
    "ledger_loss": "loss",
    "ledger_average": "average",
    "ledger_rank": "average",  # from 0, the lowest average of the set's samples that have been seen, to 1, the highest
    "ledger_visits": "visits",
    "ledger_step": "step",
}


class Frozen(NamedTuple):
    """A ledger at the start of an epoch: the finished steps, and columns of all samples of a source."""

    step: int
    columns: Mapping[str, np.ndarray]


def unseen(samples: int) -> Frozen:
    """The ledger of a run that begins."""
    nothing, never = np.full(samples, np.nan, np.float32), np.zeros(samples, np.int32)
    return Frozen(0, {"loss": nothing, "average": nothing, "visits": never, "step": never})


@dataclass(frozen=True)
class Follow:
    """What of a set follows the ledger. `columns` holds what else is asked for, of all its samples."""

    where: Where | None
    weight: str | None
    draw: str
    columns: Mapping[str, np.ndarray]
    at: str  # what messages begin with

    @property
    def names(self) -> list[str]:
        """The names of `LEDGER` that it asks for."""
        asked = {*(self.where.columns if self.where else ()), self.weight}
        return [name for name in LEDGER if name in asked]

    def choose(self, ledger: Mapping[str, np.ndarray], step: int) -> tuple[torch.Tensor | None, Favour | None]:
        """(which samples, how often each) by the ledger's columns of the set; None: all, or all alike.

        Samples that have not been seen have the mean weight of those that have. Raises `UserError` for what leaves
        nothing.
        """

        def column(name: str) -> np.ndarray:
            if name not in LEDGER:
                return self.columns[name]
            return _ranks(ledger["average"]) if name == "ledger_rank" else ledger[LEDGER[name]]

        kept = None
        if self.where is not None:
            rows = self.where.rows(column)
            if not rows.any():
                remedy = "widen it"
                if not np.isfinite(ledger["average"]).any():
                    remedy = "nothing is known of a sample before its first visit: let ledger_visits == 0 through, too"
                left = f"leaves none of {len(rows):,} images at step {step:,}"
                raise UserError(f"{self.at}.where: {self.where.text!r} {left}; {remedy}")
            kept = None if rows.all() else torch.from_numpy(np.flatnonzero(rows).astype(np.int64))
        if self.weight is None:
            return kept, None
        weights = column(self.weight)
        weights = weights if kept is None else weights[kept.numpy()]
        if self.weight in LEDGER:
            known = np.isfinite(weights)
            weights = np.where(known, weights, weights[known].mean(dtype=np.float64) if known.any() else 1.0)
        try:
            return kept, Favour(weights, self.draw, f"{self.at}.weight: {self.weight}")
        except UserError as fault:
            hint = "; ledger_rank is never negative" if self.weight in ("ledger_loss", "ledger_average") else ""
            raise UserError(f"{fault} at step {step:,}{hint}") from None


def _ranks(averages: np.ndarray) -> np.ndarray:
    seen = np.flatnonzero(np.isfinite(averages))
    ranks = np.full(len(averages), np.nan)
    ranks[seen[np.argsort(averages[seen], kind="stable")]] = np.linspace(0, 1, len(seen))
    return ranks


def columns_of(source: PlannedSource) -> list[str]:
    """The columns of the ledger that sets of `source` follow."""
    names = {LEDGER[name] for planned in source.plan if planned.follow for name in planned.follow.names}
    return sorted(names | {"average"}) if names else []  # an empty choice is explained by the averages


def follow(order: MixedOrder, source: PlannedSource, frozen: Frozen) -> MixedOrder:
    """The order from `frozen.step` on, by what is frozen. Raises `UserError` for what leaves nothing."""
    chosen = {}
    for planned, first, last in zip(source.plan, source.starts, source.starts[1:]):
        if planned.follow:
            own = {name: values[first:last] for name, values in frozen.columns.items()}
            chosen[planned.name] = planned.follow.choose(own, frozen.step)
    return order.choose(frozen.step, chosen, frozen)
