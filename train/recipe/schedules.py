"""Schedules are arrays indexed by step."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from ...lengths import length_in_steps
from ...outside import called

SCHEDULES = ("cosine", "poly", "multistep", "constant")


def own_factors(name: str, progress: np.ndarray) -> np.ndarray:
    """What the function of that dotted name makes of `progress` (N,) in [0, 1), the share of the run behind the warm-up
    that is over: (N,) float64, factors on the peak rate.

    Raises `ValueError`, which begins with ``schedule:``, for a name or a function that gives no such thing.
    """
    if "." not in name:
        near = difflib.get_close_matches(name, SCHEDULES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"schedule: needs one of {', '.join(SCHEDULES)} or a dotted name, got {name!r}{hint}")
    try:
        factors = called(name, ("progress",), {})(progress)
    except ValueError as fault:
        raise ValueError(f"schedule: {str(fault).removeprefix('name: ')}") from None
    factors = np.asarray(factors, np.float64)
    if factors.shape != progress.shape or not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(
            f"schedule: {name} must give a finite factor of at least 0 for each of {progress.shape} moments"
        )
    return factors


def milestone_in_steps(milestone: float | str, steps_per_epoch: int) -> float:
    """A moment of a run in steps: a number of epochs, or "18000 steps". Raises `ValueError` for another text."""
    if isinstance(milestone, str):
        return length_in_steps(milestone, total_steps=1, steps_per_epoch=steps_per_epoch)
    return milestone * steps_per_epoch


def learning_rates(
    peak: float,
    steps: int,
    steps_per_epoch: int,
    *,
    schedule: str = "cosine",
    warmup: int = 0,
    warmup_from: float | None = None,
    warmup_curve: str = "linear",
    per_epoch: bool = False,
    final: float = 0.0,
    power: float = 0.9,
    milestones: Sequence[float | str] = (),
    gamma: float = 0.1,
) -> np.ndarray:
    """(steps,) float64: `warmup` steps from ``peak * warmup_from`` to `peak`, then the schedule.

    `warmup_from` None means ``1 / warmup``; the way there is straight, or with `warmup_curve` "cosine" half a period.
    The cosine falls from `peak` at the end of the warm-up to ``peak * final``
    at the end of the run; with `per_epoch` it holds its value through every epoch. Poly goes the same way with the
    `power` of what is left of it (DeepLab, arXiv 1606.00915). Milestones are epochs counted from the start of the run,
    or texts such as "18000 steps". A dotted name is for `own_factors`.
    """
    t = np.arange(steps)
    start = 1 / max(1, warmup) if warmup_from is None else warmup_from
    way = t / max(1, warmup - 1)
    if warmup_curve == "cosine":
        way = 0.5 * (1 - np.cos(np.pi * np.minimum(way, 1)))
    rising = start + (1 - start) * way
    factor = np.ones(steps)
    moment = t // steps_per_epoch * steps_per_epoch if per_epoch else t
    phase = np.maximum(0, moment - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        factor = final + (1 - final) * 0.5 * (1 + np.cos(np.pi * phase))
    elif schedule == "poly":
        factor = final + (1 - final) * (1 - phase) ** power
    elif schedule == "multistep":
        moments = [milestone_in_steps(milestone, steps_per_epoch) for milestone in milestones]
        factor = gamma ** np.searchsorted(moments, t, side="right").astype(float)
    elif schedule != "constant":
        factor = own_factors(schedule, phase)
    return peak * np.where(t < warmup, rising, factor)


def half_cosine(start: float, end: float, steps: int) -> np.ndarray:
    """(steps,) float64: from `start` at step 0 towards `end`, which it would reach at step `steps`."""
    return end + (start - end) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / max(1, steps)))
