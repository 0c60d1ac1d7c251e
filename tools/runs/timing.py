"""Step times of a log: the mean, the slowest and the fastest epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from .run_logs import Log


@dataclass(frozen=True)
class StepTimes:
    """Seconds a step."""

    mean: float  # over rows, as the others
    median: float
    slowest: tuple[int, float]  # (epoch, mean over its rows)
    fastest: tuple[int, float]
    deviation: float  # standard deviation of the epochs' means


def step_times(log: Log, *, first_rows: bool = False) -> StepTimes:
    """Without `first_rows`, an epoch's first row is left out, which start-up slows, unless it is the only one.

    Raises `UserError` where the log has no times.
    """
    if "time" not in log.keys:
        raise UserError(f"{log.name}: no step times; a metrics.jsonl needs the config.yaml of its run beside it")
    epochs: dict[int, list[float]] = {}
    for row in log.rows:
        if "time" in row:
            epochs.setdefault(int(row.get("epoch", 0)), []).append(row["time"])
    kept = {epoch: times if first_rows or len(times) == 1 else times[1:] for epoch, times in epochs.items()}
    means = {epoch: float(np.mean(times)) for epoch, times in kept.items()}
    every = np.concatenate(list(kept.values()))
    slowest, fastest = max(means, key=means.get), min(means, key=means.get)
    return StepTimes(
        mean=float(every.mean()),
        median=float(np.median(every)),
        slowest=(slowest, means[slowest]),
        fastest=(fastest, means[fastest]),
        deviation=float(np.std(list(means.values()))),
    )


def elapsed(rows: list[dict[str, float]]) -> list[float]:
    """Hours of training up to each row: its step time counts for all steps since the row before.

    What lies between steps (k-NN, a stop) is not in it.
    """
    hours, total, before = [], 0.0, 0.0
    for row in rows:
        if "time" in row:
            total += (row["step"] - before) * row["time"] / 3600
            before = row["step"]
        hours.append(total)
    return hours
