"""Schedules are arrays indexed by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(epochs?|steps?)")


def length_in_steps(length: float | str, total_steps: int, steps_per_epoch: int) -> int:
    """A stretch of a run in steps: "10 epochs", "500 steps", or a share of the run in [0, 1].

    Raises `ValueError` for anything else.
    """
    if isinstance(length, str):
        match = _LENGTH.fullmatch(length.strip())
        if match is None:
            raise ValueError(f'needs "10 epochs", "500 steps" or a share in [0, 1], not {length!r}')
        return round(float(match[1]) * (steps_per_epoch if match[2].startswith("epoch") else 1))
    if not 0 <= length <= 1:
        raise ValueError(f'a share of the run lies in [0, 1], not {length}; for epochs write "{length:g} epochs"')
    return round(length * total_steps)


def learning_rates(
    peak: float,
    steps: int,
    steps_per_epoch: int,
    *,
    schedule: Literal["cosine", "multistep", "constant"] = "cosine",
    warmup: int = 0,
    warmup_from: float | None = None,
    per_epoch: bool = False,
    final: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> np.ndarray:
    """(steps,) float64: `warmup` steps, linear from ``peak * warmup_from`` to `peak`, then the schedule.

    `warmup_from` None means ``1 / warmup``. The cosine falls from `peak` at the end of the warm-up to ``peak * final``
    at the end of the run; with `per_epoch` it holds its value through every epoch. Milestones are epochs counted from
    the start of the run.
    """
    t = np.arange(steps)
    start = 1 / max(1, warmup) if warmup_from is None else warmup_from
    rising = start + (1 - start) * t / max(1, warmup - 1)
    factor = np.ones(steps)
    if schedule == "cosine":
        moment = t // steps_per_epoch * steps_per_epoch if per_epoch else t
        phase = np.maximum(0, moment - warmup) / max(1, steps - warmup)
        factor = final + (1 - final) * 0.5 * (1 + np.cos(np.pi * phase))
    elif schedule == "multistep":
        factor = gamma ** np.searchsorted(np.asarray(milestones) * steps_per_epoch, t, side="right").astype(float)
    return peak * np.where(t < warmup, rising, factor)


def half_cosine(start: float, end: float, steps: int) -> np.ndarray:
    """(steps,) float64: from `start` at step 0 towards `end`, which it would reach at step `steps`."""
    return end + (start - end) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / max(1, steps)))
