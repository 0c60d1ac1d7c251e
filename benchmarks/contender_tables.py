"""Tables of the ledger `contenders`: methods at equal CPU time, and what meters without labels told of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .ledger import NOT_YET, Row, about, facts, lines, number

METERS = {  # -> how it should go with accuracy: up or down
    "spread": 1,
    "rank": 1,
    "alpha": -1,
    "lidar": 1,
    "patch_spread": 1,
}
QUALITIES = {"good": (1.0, 1.0), "short": (0.2, 1.0), "slow": (1.0, 0.03), "hot": (1.0, 10.0)}  # time, rate
_FEWEST = 20  # runs that a table of meters needs


def correlations(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of each meter, Spearman's correlation with the linear accuracy: over all rows, and the mean within methods."""
    found = {}
    for meter in METERS:
        known = [row for row in rows if meter in row]
        inside = [[row for row in known if row["of"] == name] for name in sorted({row["of"] for row in known})]
        within = [spearman(group, meter) for group in inside if len(group) > 2]
        within = [value for value in within if value == value]
        found[meter] = {"runs": len(known), "all": spearman(known, meter)}
        found[meter]["within"] = float(np.mean(within)) if within else float("nan")
    return found


def spearman(rows: Sequence[Row], meter: str) -> float:
    """The correlation of ranks, equal values sharing theirs; NaN where either does not vary."""
    if len(rows) < 3:
        return float("nan")
    a, b = (_ranks([row[key] for row in rows]) for key in (meter, "linear"))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def quality_of(row: Row) -> tuple[str, str] | None:
    """Method and quality of a row that calibrates the meters, None of another one."""
    method, _, quality = row.get("contender", "").rpartition("-")
    return (method, quality) if quality in QUALITIES else None


def is_comparison(row: Row) -> bool:
    """Whether a row is of methods at equal time, all of them at their best."""
    return row["job"].endswith("CPU minutes") and "seed" in row and quality_of(row) is None


def methods(rows: Sequence[Row]) -> list[str]:
    """Methods at equal CPU time, best k-NN first; of several seeds the means, and how far apart they lie."""
    own = last_run(rows, is_comparison)
    if not own:
        return [NOT_YET]
    names = dict.fromkeys(row["contender"] for row in own)
    seeds, body = {name: [row for row in own if row["contender"] == name] for name in names}, []
    for name, some in sorted(seeds.items(), key=lambda item: -np.mean([row["knn"] for row in item[1]])):
        figures = [_mean([row[key] for row in some]) for key in ("knn", "linear")]
        body.append([name, *figures, str(len(some)), f"{np.mean([row['steps'] for row in some]):,.0f}"])
    return [f"{about(own)}; {own[0]['job']} each.", "", *lines(["", "k-NN", "linear", "seeds", "steps"], body)]


def _mean(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ({min(values):.1f}-{max(values):.1f})"


def meters(rows: Sequence[Row]) -> list[str]:
    """What meters told of accuracy, and the runs that say so."""
    own = last_run(rows, lambda row: quality_of(row) is not None)
    if len(own) < _FEWEST:
        return [NOT_YET]
    own = [row | dict(zip(("of", "quality"), quality_of(row))) for row in own]
    header = ["meter", "better is", "runs", "over all", "within methods", "tells over all", "tells within methods"]
    figures = ("linear", "knn", *METERS)
    runs = [[row["of"], row["quality"], *(number(row[key]) if key in row else "" for key in figures)] for row in own]
    shown = ["k-NN" if key == "knn" else key.replace("_", " ") for key in figures]
    tables = [*lines(header, verdicts(own), left=2), "", *lines(["", "", *shown], runs, left=2)]
    return [f"{about(own)}; {own[0]['job']} each.", "", *tables]


def last_run(rows: Sequence[Row], kind: Callable[[Row], bool]) -> list[Row]:
    """The rows of a kind that the last process wrote which wrote any."""
    own = [facts(row) for row in rows if kind(row)]
    return [row for row in own if row["run"] == own[-1]["run"]]


def verdicts(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each meter: its name, how many runs, both correlations, and in words what that makes of it."""
    lines = []
    for meter, found in correlations(rows).items():
        told = [_told(METERS[meter] * found[key]) for key in ("all", "within")]
        figures = ["" if found[key] != found[key] else f"{found[key]:+.2f}" for key in ("all", "within")]
        lines.append([f"`{meter}`", "up" if METERS[meter] > 0 else "down", str(found["runs"]), *figures, *told])
    return lines


def _told(agreement: float) -> str:
    if agreement != agreement:
        return ""
    if agreement <= -0.3:
        return "**misleads**"
    return "nothing" if agreement < 0.3 else "a little" if agreement < 0.6 else "much"
