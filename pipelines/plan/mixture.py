"""The order of a run over several sets: still a function of (seed, step, rank, world), and no state.

What a step reads follows from counts: how many images each set has given before it (`deal.py`, for any step at once),
and how many it gives now. The k-th image of a set is the (k mod n)-th of a keyed permutation of the set that is new in
every pass over it: so each set is read exactly once in each of its passes, however fast it is used up beside the
others. Where in the batch an image stands is drawn by a key; rank r takes the r-th equal part, as in `order.py`.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch

from ...errors import UserError
from ..order import share_of
from ..rng import epoch_key, random_words, stream_key, stream_root
from .bijections import permute_each
from .deal import PERIOD, Deal, Marks
from .favour import Favour

_FAR = 1 << 50  # steps; no run is that long


@dataclass(frozen=True)
class Part:
    """One set of a mixture."""

    name: str
    samples: int
    weights: tuple[tuple[int, float], ...]  # (first step, weight from there on), ascending from step 0
    limit: int | None = None  # after how many images it is exhausted; None: after none
    favour: Favour | None = None  # how often it gives each of `kept`; None: all alike
    kept: torch.Tensor | None = None  # (n,) int64: which of its samples it gives; None: all
    since: int = 0  # how many images it had given when these two were chosen: there a pass begins

    @property
    def size(self) -> int:
        """How many of its samples it gives."""
        return self.samples if self.kept is None else len(self.kept)

    def weight(self, step: int) -> float:
        return self.weights[bisect_right(self.weights, (step, float("inf"))) - 1][1]


class Phase(NamedTuple):
    """Steps over which the shares stay the same."""

    first: int
    before: np.ndarray  # (S,) images of each set in the steps before
    mixed: Deal  # over its mixed batches
    pure: Deal | None  # over its batches of one set
    marks: Marks | None  # which those are


class Composition(NamedTuple):
    """What a step's global batch is made of."""

    before: np.ndarray  # (S,) images of each set in all steps before
    counts: np.ndarray  # (S,) images of each set in it


class MixedOrder:
    """The reading order of a mixture: `ids`, `passes`, `steps_per_epoch` as `Order` has them; batches without end.

    A sample's id counts through the sets in their order. An epoch is `epoch_samples` images; nothing is left out at
    its end, the sets go on where they are. `pure` is the share of batches that are of one set alone. A set that is
    exhausted begins again (``again``), ends the run (``stop``) or leaves its share to the others (``drop``); the batch
    in which it ends is filled with the first of its next pass.

    `begin`: a step before which the run had another plan, and how many images each set had given by then.

    Raises `UserError` for weights that leave a set or a step without anything.
    """

    shuffle, last, blocks = True, "drop", None

    def __init__(
        self,
        parts: tuple[Part, ...],
        global_batch: int,
        *,
        seed: int = 0,
        pure: float = 0.0,
        exhausted: Literal["again", "stop", "drop"] = "again",
        epoch_samples: int | None = None,
        begin: tuple[int, Mapping[str, int]] = (0, {}),
    ) -> None:
        self.parts, self.global_batch, self.seed = parts, global_batch, seed
        self.pure, self.exhausted, self.begin, self.first = pure, exhausted, begin, begin[0]
        self.samples = sum(part.samples for part in parts)
        self.steps_per_epoch = max(1, (epoch_samples or self.samples) // global_batch)
        self.ends: int | None = None  # after how many steps there is nothing more; None: never
        self.chosen_by: object = None  # what `choose` was told
        self._roots = torch.tensor([stream_root(seed, f"order/{part.name}") for part in parts])
        starts = np.cumsum([0, *(part.samples for part in parts)])
        self._offsets = torch.from_numpy(starts[:-1])
        self._phases = self._make_phases()
        self._starts = [phase.first for phase in self._phases]
        self._index()

    def _index(self) -> None:
        """What of the parts may be chosen anew, as arrays."""
        self._sizes = np.array([part.size for part in self.parts])
        self._since = np.array([part.since for part in self.parts])
        self._chosen = [i for i, part in enumerate(self.parts) if part.favour is not None or part.kept is not None]
        self._read = lru_cache(maxsize=8)(self._read_anew)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_read"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._read = lru_cache(maxsize=8)(self._read_anew)

    def choose(
        self, step: int, chosen: Mapping[str, tuple[torch.Tensor | None, Favour | None]], why: object = None
    ) -> MixedOrder:
        """This order from `step` on, where sets give other samples: their name -> (`kept`, `favour`), see `Part`.
        `why` is kept as `chosen_by`.

        How many images each set gives at which step stays. The sets that are chosen from begin a pass, whose number no
        earlier one has: it is at least that of the images they have given.
        """
        order, given = copy.copy(self), self.given(step)
        order.parts = tuple(
            replace(part, kept=chosen[part.name][0], favour=chosen[part.name][1], since=given[part.name])
            if part.name in chosen
            else part
            for part in self.parts
        )
        order.first, order.chosen_by = step, why
        order._index()
        return order

    # ---- counts

    def _make_phases(self) -> list[Phase]:
        moments = sorted({step for part in self.parts for step, _ in part.weights})
        phases: list[Phase] = []
        step, before = self.first, np.array([self.begin[1].get(p.name, 0) for p in self.parts], np.int64)
        gone: set[int] = set()
        if self.exhausted != "again":
            gone = {i for i, part in enumerate(self.parts) if part.limit is not None and before[i] >= part.limit}
        while True:
            shares = np.array([0.0 if i in gone else part.weight(step) for i, part in enumerate(self.parts)])
            if not shares.any():
                self.ends = step
                break
            phases.append(self._phase(step, before, shares, len(phases)))
            until = next((moment for moment in moments if moment > step), _FAR)
            ending = self._first_exhausted(phases[-1], gone, until)
            if ending is None and until == _FAR:
                break
            step = until if ending is None else ending[0]
            before = self._before(phases[-1], step)
            if ending is not None:
                gone |= ending[1]
                if self.exhausted == "stop":
                    self.ends = step
                    break
        if not phases:
            raise UserError("data.train: no set has a weight at the first step; give one a positive weight")
        return phases

    def _phase(self, first: int, before: np.ndarray, shares: np.ndarray, number: int) -> Phase:
        mixed = Deal(shares, self.global_batch, stream_key(self.seed, f"deal/{number}", 0))
        for part, share, quota in zip(self.parts, shares, mixed.quotas):
            if share > 0 and not quota:
                raise UserError(
                    f"data.train.{part.name}: weight: its share of {share / shares.sum():.1e} is less than one image "
                    f"in {PERIOD:,} batches of {self.global_batch}; raise it, or leave the set out"
                )
        if not self.pure:
            return Phase(first, before, mixed, None, None)
        pure = Deal(shares, 1, stream_key(self.seed, f"deal/pure/{number}", 0))
        return Phase(first, before, mixed, pure, Marks(self.pure, stream_key(self.seed, "pure", 0)))

    def _before(self, phase: Phase, step: int) -> np.ndarray:
        """(S,) images of each set in all steps before `step`, which lies in the phase or ends it."""
        steps = step - phase.first
        if phase.marks is None:
            return phase.before + phase.mixed.before(steps)
        marked = phase.marks.before(steps)
        return phase.before + phase.mixed.before(steps - marked) + self.global_batch * phase.pure.before(marked)

    def _first_exhausted(self, phase: Phase, gone: set[int], until: int) -> tuple[int, set[int]] | None:
        """(the step before which sets reach their limit first, which sets those are), if that is before `until`."""
        if self.exhausted == "again":
            return None
        limits = np.array([_FAR * self.global_batch if p.limit is None else p.limit for p in self.parts])
        limits[list(gone)] = np.iinfo(np.int64).max

        def reached(step: int) -> np.ndarray:
            return self._before(phase, step) >= limits

        if not any(part.limit is not None for i, part in enumerate(self.parts) if i not in gone):
            return None
        low, high = phase.first, phase.first + 1  # not reached before `low`; doubled until it is
        while not reached(high).any():
            if high >= until:
                return None
            low, high = high, min(until, 2 * high - phase.first)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle).any() else (middle, high)
        return high, set(np.flatnonzero(reached(high)).tolist())

    def given(self, step: int) -> dict[str, int]:
        """How many images each set has given in all steps before `step`."""
        phase = self._phases[max(0, bisect_right(self._starts, step) - 1)]
        return dict(zip((part.name for part in self.parts), self._before(phase, step).tolist()))

    def composition(self, step: int) -> Composition:
        """What the global batch of a step is made of. Raises `UserError` beyond the end of a mixture that has one."""
        if self.ends is not None and step >= self.ends:
            raise UserError(
                f"data.mix: every set is exhausted after {self.ends:,} steps, and step {step:,} was asked for"
            )
        if step < self.first:
            raise UserError(f"data.train: step {step:,} was read by the plan that held until step {self.first:,}")
        phase = self._phases[bisect_right(self._starts, step) - 1]
        before, steps = self._before(phase, step), step - phase.first
        if phase.marks is None:
            return Composition(before, phase.mixed.counts(steps))
        marked = phase.marks.before(steps)
        if steps in phase.marks:
            return Composition(before, self.global_batch * phase.pure.counts(marked))
        return Composition(before, phase.mixed.counts(steps - marked))

    # ---- what `Order` has

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def ids(self, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
        """(global_batch / world,) int64: what `rank` reads at global step `step`."""
        return self._read(step, rank, world)[0]

    def passes(self, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
        """(global_batch / world,) int64: which time each of them is read; of favoured ones, which image of its set."""
        return self._read(step, rank, world)[1]

    def origin(self, ids: torch.Tensor) -> torch.Tensor:
        """The number of the set that each of `ids` belongs to."""
        return torch.bucketize(ids, self._offsets, right=True) - 1

    def _read_anew(self, step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
        share = share_of(self.global_batch, world)
        before, counts = self.composition(step)
        words = random_words(self.seed, "slots", step, torch.arange(self.global_batch), 1)[:, 0]
        slots = words.argsort()[rank * share : (rank + 1) * share].numpy()  # no two words are alike
        ends = counts.cumsum()
        which = np.searchsorted(ends, slots, side="right")
        given = (before - ends + counts)[which] + slots  # the image of its set, counted over the whole run
        own = given - self._since[which]
        turns = own // self._sizes[which]
        ids, passes = self._places(own, turns, which, before - self._since, counts), turns + self._since[which]
        for number in self._chosen:
            mine, part = which == number, self.parts[number]
            if part.favour is not None:
                images = torch.from_numpy(own[mine])
                ids[mine] = part.favour.at(images, self.seed, part.name, part.since).numpy()
                passes[mine] = given[mine]
            if part.kept is not None:
                ids[mine] = part.kept.numpy()[ids[mine]]
        return self._offsets[torch.from_numpy(which)] + torch.from_numpy(ids), torch.from_numpy(passes)

    def _places(self, own, turns, which, before, counts) -> np.ndarray:
        """(n,) samples of their sets `which` that are their images `own`, counted from where a pass began, `turns`
        passes ago; of each set `counts` are in the batch, after `before`."""
        first = before // self._sizes
        last = np.maximum(before + counts - 1, 0) // self._sizes
        widths = np.where(counts > 0, last - first + 1, 0)  # how many passes of each set the batch takes from
        starts = widths.cumsum() - widths
        sets = np.repeat(np.arange(len(widths)), widths)
        passes = np.arange(len(sets)) - starts[sets] + first[sets] + self._since[sets]
        keys = epoch_key(self._roots[torch.from_numpy(sets)], torch.from_numpy(passes)).numpy()
        positions, rows = own - turns * self._sizes[which], starts[which] + turns - first[which]
        return permute_each(positions, self._sizes[sets], keys, rows)
