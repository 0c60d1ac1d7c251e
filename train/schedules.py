"""Schedules are arrays indexed by step."""

from __future__ import annotations

import numpy as np


def warmup_cosine(peak: float, steps: int, warmup_steps: int, final: float = 0.0) -> np.ndarray:
    """(steps,) float64: linear from peak / warmup_steps up to `peak`, then a half cosine down to `final`."""
    t = np.arange(steps)
    rising = peak * (t + 1) / max(1, warmup_steps)
    phase = (t - warmup_steps) / max(1, steps - warmup_steps)
    falling = final + (peak - final) * 0.5 * (1 + np.cos(np.pi * phase))
    return np.where(t < warmup_steps, rising, falling)
