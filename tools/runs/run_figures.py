"""The figures of a run that people compare, in words, and its curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .charts import Chart, Curve
from .curves import chart_of
from .run_logs import Log
from .run_record import Record
from .timing import elapsed, step_times

_FIRST = ("loss", "lr", "grad_norm", "knn")  # of charts; others follow as they are logged
_OVER_TIME = ("images_per_s", "data_wait")
_WORDS = {"lr": "learning rate", "grad_norm": "norm of the gradient", "knn": "k-NN accuracy"}
_WORDS |= {"images_per_s": "images/s", "data_wait": "share of the time waiting for data"}


def figures(record: Record) -> dict[str, str]:
    """What came out of a run and how fast, by medians; only what is known."""
    found = {"steps": f"{record.steps:,}" + (f" of {record.total_steps:,}" if record.total_steps else "")}
    losses = record.values("loss")
    if losses.size:
        rows, values = record.log.series("loss")
        best = min((value, int(row["step"])) for row, value in zip(rows, values) if np.isfinite(value))
        found["last loss"] = f"{values[-1]:.4f}"
        found["least loss"] = f"{best[0]:.4f} at step {best[1]:,}"
    knn = record.values("knn")
    if knn.size:
        found["last k-NN accuracy"] = f"{knn[-1]:.2%}"
        found["best k-NN accuracy"] = f"{knn.max():.2%}"
    rate = record.values("images_per_s")
    if rate.size:
        low, middle, high = np.percentile(rate, (20, 50, 80))
        found["images/s (p20 to p80)"] = f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
    wait = record.values("data_wait")
    if wait.size:
        found["waiting for data"] = f"{np.median(wait):.1%}"
    if record.log and "time" in record.log.keys:
        times = step_times(record.log)
        found["seconds a step"] = f"{times.median:.4f}"
        found["time in steps"] = duration(record.hours)
    return found


def scores(record: Record) -> dict[str, str]:
    """Figures of evaluations; those between 0 and 1 are shares."""
    return {name: f"{score:.2%}" if 0 <= score <= 1 else f"{score:g}" for name, score in record.scores.items()}


def duration(hours: float) -> str:
    """2 h 05 min, 12 min, 45 s"""
    seconds = round(3600 * hours)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def charts(logs: Sequence[Log], labels: Sequence[str]) -> list[Chart]:
    """A chart for each figure that any log has, all logs in it; speed and waiting over time where it is known."""
    known = dict.fromkeys(key for log in logs for key in log.keys if key not in ("time", "skipped", "skipped_in_row"))
    order = [*(key for key in _FIRST if key in known), *(key for key in _OVER_TIME if key in known)]
    order += [key for key in known if key not in order]
    timed = all("time" in log.keys for log in logs)
    return [
        _over_time(logs, labels, key) if key in _OVER_TIME and timed else _named(chart_of(logs, labels, key))
        for key in order
    ]


def _named(chart: Chart) -> Chart:
    return Chart(_WORDS.get(chart.name, chart.name), chart.curves, chart.xlabel, chart.log)


def _over_time(logs: Sequence[Log], labels: Sequence[str], key: str) -> Chart:
    """Over minutes, or over hours if there are two of them."""
    hours = [elapsed(log.rows) for log in logs]
    factor, unit = (1, "hours of steps") if max(map(max, hours)) >= 2 else (60, "minutes of steps")
    curves = []
    for color, (log, label, times) in enumerate(zip(logs, labels, hours)):
        places = [(factor * at, row[key]) for at, row in zip(times, log.rows) if key in row]
        if places:
            x, y = zip(*places)
            curves.append(Curve(label, x, y, color=color))
    return Chart(_WORDS[key], curves, unit)
