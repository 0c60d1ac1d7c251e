"""Curves, as a PNG and as drawings inside a page that follow its colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ..look.figures import plain_text, save_figure

_POINTS = 1000  # of a curve at most, the extremes of so many halves of buckets: a picture has no more columns
_FEW = 12  # points that are marked each, since one or two make no line
_COLORS = ("#0b6bb5", "#c65500", "#12805c", "#a8428a", "#8a6d00", "#5a55c8", "#1e8ba3", "#6b6b6b")
_INK = "#010203"  # of a drawing's text and axes, until the page's own takes its place


@dataclass(frozen=True)
class Curve:
    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False  # what a smoothed curve is drawn over
    color: int = 0


@dataclass(frozen=True)
class Chart:
    """One pair of axes."""

    name: str
    curves: list[Curve] = field(default_factory=list)
    xlabel: str = "step"
    log: bool = False


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start: sum of w^(t-i) x_i / sum of w^(t-i), i = 0..t.

    `weight` w in [0, 1): 0 leaves the values as they are. What is not finite stays as it is and counts for nothing.
    """
    total, share, found = 0.0, 0.0, []
    for value in values:
        if not math.isfinite(value):
            found.append(value)
            continue
        total, share = weight * total + value, weight * share + 1
        found.append(total / share)
    return found


def save_png(charts: Sequence[Chart], path: Path, title: str = "") -> None:
    """The charts below one another. Raises `UserError` where the file cannot be written."""
    figure, rows = plt.subplots(
        len(charts), 1, figsize=(8, 0.4 + 3.1 * len(charts)), squeeze=False, layout="constrained"
    )
    for chart, axes in zip(charts, rows[:, 0]):
        _draw(chart, axes, _COLORS)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=120)


def to_svg(chart: Chart, number: int) -> str:
    """The chart as an element of a page, in the page's own colours; `number` tells the charts of a page apart."""
    stand_ins = tuple(f"#0405{index:02x}" for index in range(len(_COLORS)))
    settings = {"svg.fonttype": "none", "svg.hashsalt": f"chart {number}", "font.family": "sans-serif", "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK)
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
        _draw(chart, axes, stand_ins)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plain_text(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace("xlink:href", "href").replace(_INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->| xmlns(:\w+)?=\"[^\"]*\"", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"(<g) id=\"[^\"]*\"", r"\1", drawing)
    for index, color in enumerate(stand_ins):
        drawing = drawing.replace(color, f"var(--series-{index})")
    drawing = re.sub(r"<svg width=\"[^\"]*\" height=\"[^\"]*\"", "<svg", drawing)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(chart.name)}"', 1).strip()


def _draw(chart: Chart, axes: Axes, colors: Sequence[str]) -> None:
    labels = 0
    for curve in chart.curves:
        x, y = _thin(curve.x, curve.y)
        look = {"linewidth": 1.0, "alpha": 0.35} if curve.faint else {"linewidth": 1.6}
        look |= {"marker": "o", "markersize": 3} if len(x) <= _FEW else {}
        label = None if curve.faint else curve.label
        labels += label is not None
        axes.plot(x, y, color=colors[curve.color % len(colors)], label=label, **look)
    axes.set_xlabel(chart.xlabel)
    axes.set_title(chart.name, fontsize=10, loc="left")
    if chart.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.2, color=axes.spines["left"].get_edgecolor())
    axes.spines[["top", "right"]].set_visible(False)
    if labels > 1:
        axes.legend(fontsize=8, framealpha=0.3)


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about `_POINTS` points that keep every peak: the lowest and the highest of each bucket, in order."""
    if len(x) <= _POINTS:
        return list(x), list(y)
    size = math.ceil(2 * len(x) / _POINTS)
    kept = []
    for first in range(0, len(x), size):
        bucket = sorted(range(first, min(first + size, len(x))), key=lambda i: (not math.isfinite(y[i]), y[i]))
        finite = [i for i in bucket if math.isfinite(y[i])] or bucket[:1]
        kept += sorted({finite[0], finite[-1]})
    return [x[i] for i in kept], [y[i] for i in kept]
