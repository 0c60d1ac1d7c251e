"""Values that change over a run, as arrays indexed by step: the two forms of DINOv2's and DINOv3's authors."""

from __future__ import annotations

import math

import numpy as np


def cosine_schedule(
    base: float,
    final: float,
    steps: int,
    *,
    warmup: int = 0,
    start: float = 0.0,
    freeze: int = 0,
    extra: float = 0.0,
) -> np.ndarray:
    """(steps,) float64: zeros for `freeze` steps, a line from `start` to `base`, both reached, and a half cosine.

    The cosine would reach `final` one step after the last. With `extra` it is that of a stretch longer by this share,
    cut off and scaled so that the last step has `final` (DINOv3's ``trunc_extra``).
    """
    count = steps - warmup - freeze
    falling = base + (final - base) * 0.5 * (1 - np.cos(np.pi * np.arange(count) / max(1, count)))
    if extra and count > 0:
        length = int((1 + extra) * count)
        way = 0.5 * (1 - np.cos(np.pi * np.arange(length) / max(1, length - 1)))[:count]
        falling = base + (final - base) * way / way[-1]
    return np.concatenate([np.zeros(freeze), np.linspace(start, base, warmup), falling])


def ramp(
    start: float, peak: float, end: float, steps: int, *, warmup: int = 0, cosine: int | None = None
) -> np.ndarray:
    """(steps,) float64: a line from `start` towards `peak`, which the next step has; a half cosine from there to `end`
    over `cosine` steps (default: all the rest), both reached; then `end` (DINOv3's ``schedules``)."""
    warmup = min(warmup, steps)
    cosine = steps - warmup if cosine is None else min(cosine, steps - warmup)
    way = 0.5 * (1 - np.cos(np.pi * np.arange(cosine) / max(1, cosine - 1)))
    rising = np.linspace(start, peak, warmup, endpoint=False)
    return np.concatenate([rising, peak + (end - peak) * way, np.full(steps - warmup - cosine, end)])


def line(start: float, end: float, length: int, at: int) -> float:
    """Element `at` of ``numpy.linspace(start, end, length)``, and `end` behind it."""
    return end if at >= length - 1 else start + (end - start) * at / (length - 1)


def half_cosine(length: int, at: int) -> float:
    """Element `at` of ``ramp(0, 0, 1, steps, cosine=length)``: from 0 to 1, both reached, and 1 behind it."""
    return 1.0 if at >= length - 1 else 0.5 * (1 - math.cos(math.pi * at / (length - 1)))
