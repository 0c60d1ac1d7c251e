"""Curves of one or several runs: ``headrace curves RUN... [--keys loss lr] [--smooth 0.9]``.

Of headrace (a run directory or its metrics.jsonl), of MMEngine (a work directory, scalars.json) and of MMSelfSup 0.x
(*.log.json), side by side.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ...places import new_file
from ..columns import aligned
from .charts import Chart, Curve, save_png, smooth
from .run_logs import Log, epoch_length, read_log
from .timing import elapsed, step_times

AXES = ("step", "epoch", "hours")


def chart_of(
    logs: Sequence[Log], labels: Sequence[str], key: str, *, x: str = "step", weight: float = 0.0, log: bool = False
) -> Chart:
    """One figure of all logs that have it, smoothed with `weight` over the figure as it was logged.

    Rates are never smoothed: a schedule has no noise.
    """
    curves, weight = [], 0.0 if key == "lr" else weight
    for color, (entry, label) in enumerate(zip(logs, labels, strict=True)):
        if key not in entry.keys:
            continue
        rows, values = entry.series(key)
        places = positions(entry, rows, x)
        if weight:
            curves.append(Curve(label, places, values, faint=True, color=color))
        curves.append(Curve(label, places, smooth(values, weight), color=color))
    return Chart(key, curves, x, log)


def positions(log: Log, rows: Sequence[dict[str, float]], axis: str) -> list[float]:
    """Where rows of a log stand on an axis. Raises `UserError` for an axis that the log knows nothing of."""
    if axis == "step":
        return [row["step"] for row in rows]
    if axis == "epoch":
        length = epoch_length(log.rows)
        if length is None:
            raise UserError(f"--x epoch: {log.name} has rows of one epoch only; take --x step")
        return [row["step"] / length for row in rows]
    step_times(log)  # says what is missing
    at = {id(row): hours for row, hours in zip(log.rows, elapsed(log.rows))}
    return [at[id(row)] for row in rows]


def summary(logs: Sequence[Log], labels: Sequence[str], keys: Sequence[str], weight: float) -> list[str]:
    """A table: for each figure of each run its first and last value, and its least and greatest with their steps."""
    smoothed = ["smoothed"] if weight else []
    cells = [["", "rows", "first", "last", *smoothed, "least", "at step", "greatest", "at step"]]
    for key in keys:
        for log, label in zip(logs, labels):
            if key not in log.keys:
                continue
            rows, values = log.series(key)
            finite = [(value, int(row["step"])) for row, value in zip(rows, values) if math.isfinite(value)]
            if not finite:
                cells.append([f"{key}, {label}", str(len(rows)), "not finite", *["-"] * (5 + len(smoothed))])
                continue
            (low, low_at), (high, high_at) = min(finite), max(finite)
            ends = [values[0], values[-1], *(smooth(values, 0.0 if key == "lr" else weight)[-1:] if weight else [])]
            found = [*(f"{value:.4g}" for value in (*ends, low)), f"{low_at:,}", f"{high:.4g}", f"{high_at:,}"]
            cells.append([f"{key}, {label}", str(len(rows)), *found])
    return aligned(cells)


def times_table(logs: Sequence[Log], labels: Sequence[str], first_rows: bool) -> list[str]:
    """A line for each log that has step times; none if no log has."""
    cells = [["seconds a step", "mean", "median", "slowest epoch", "its mean", "fastest", "its mean", "deviation"]]
    for log, label in zip(logs, labels):
        if "time" in log.keys:
            t = step_times(log, first_rows=first_rows)
            row = [f"{t.mean:.4f}", f"{t.median:.4f}", str(t.slowest[0]), f"{t.slowest[1]:.4f}"]
            cells.append([label, *row, str(t.fastest[0]), f"{t.fastest[1]:.4f}", f"{t.deviation:.4f}"])
    return aligned(cells) if len(cells) > 1 else []


def short_names(paths: Sequence[str]) -> list[str]:
    """Names of runs for a legend: as little of the ends of their paths as tells them apart."""
    parts = [Path(path).absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({number})" for number, p in enumerate(parts, 1)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace curves",
        description="Loss, rate, accuracy or any other figure over a run: a picture, and a table of values and step "
        "times.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="run", help="a run or work directory, metrics.jsonl, scalars.json or *.log.json")
    add("--keys", nargs="+", default=["loss", "lr"], metavar="KEY", help="figures, one below the other (loss lr)")
    add("--x", choices=AXES, default="step", help="over steps, epochs, or hours of training (step)")
    add("--smooth", type=float, default=0.0, metavar="W", help="weight of the past, 0 to 1: 0.9 is much (0)")
    add("--log", action="store_true", help="logarithmic axes")
    add("--legend", nargs="+", metavar="NAME", help="a name for each run")
    add("--include-outliers", action="store_true", help="count the first row of each epoch among step times, too")
    add("--out", type=new_file, default="curves.png", help="a PNG (curves.png)")
    given = parser.parse_args(argv)
    if not 0 <= given.smooth < 1:
        raise UserError(f"--smooth: a weight from 0 to less than 1, not {given.smooth:g}")
    if given.out.suffix.lower() != ".png":
        raise UserError(f"--out: {given.out} is no .png")
    if given.legend and len(given.legend) != len(given.runs):
        raise UserError(f"--legend: {len(given.legend)} names for {len(given.runs)} runs")
    logs = [read_log(Path(run)) for run in given.runs]
    known = list(dict.fromkeys(key for log in logs for key in log.keys))
    for key in given.keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"--keys: {key} is logged by none of the runs; {hint}")
    labels = given.legend or short_names(given.runs)
    options = {"x": given.x, "weight": given.smooth, "log": given.log}
    save_png([chart_of(logs, labels, key, **options) for key in given.keys], given.out)
    print("\n".join(summary(logs, labels, given.keys, given.smooth)))
    if times := times_table(logs, labels, given.include_outliers):
        print("\n" + "\n".join(times))
    print(f"\n{given.out}")
    return 0
