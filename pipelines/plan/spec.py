"""What a recipe says of several sets. A leaf: the standard library alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_HEAVIEST = 1e12  # so that sums stay numbers


@dataclass(frozen=True)
class SetSpec:
    """One of several sets.

    `weight`: a number; numbers from given moments of the run on, ``{0: 0.7, "10 epochs": 0.2, 0.5: 0.1}`` (a share of
    the run, epochs or steps); or the name of a column, by whose values its samples are given more or less often. Then
    `share` is the number.
    """

    source: str
    weight: Any = None
    share: Any = None
    repeat: float | None = None  # passes after which the set is exhausted; `epochs` says the same, `samples` in images
    epochs: float | None = None
    samples: int | None = None
    where: str | None = None  # only the samples that this filter lets through
    table: str | None = None  # a .csv, .parquet or folder of .npy with columns for `where` and `weight`
    draw: Literal["stratified", "replacement"] = "stratified"  # how a column of weights is followed

    def __post_init__(self) -> None:
        given = [key for key in ("repeat", "epochs", "samples") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: say once how long the set lasts")
        if given and not 0 < getattr(self, given[0]) < float("inf"):
            raise ValueError(f"{given[0]}: must be positive and finite, not {getattr(self, given[0])}")
        if not self.source:
            raise ValueError("source: is empty; name the images")
        if self.share is not None and not isinstance(self.weight, str):
            raise ValueError("share: stands beside a weight that names a column; else the weight is the share")
        self.moments  # noqa: B018 - raises what is wrong

    @property
    def column(self) -> str | None:
        return self.weight if isinstance(self.weight, str) else None

    @property
    def moments(self) -> dict[float | str, float] | None:
        """Moment of the run -> weight from there on; None where nothing is said."""
        key, value = ("share", self.share) if self.column else ("weight", self.weight)
        if value is None:
            return None
        table = value if isinstance(value, Mapping) else {0: value}
        for weight in table.values():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= _HEAVIEST:
                raise ValueError(f"{key}: needs a number from 0 to 1e12, or the name of a column, not {weight!r}")
        moments = {_moment(moment, key): weight for moment, weight in table.items()}
        if 0 not in moments:
            raise ValueError(f"{key}: say what it is at moment 0")
        return moments

    def limit(self, count: int) -> int | None:
        """After how many images a set of `count` is exhausted, as it is said; None where nothing is."""
        passes = self.epochs if self.repeat is None else self.repeat
        return self.samples if passes is None else max(1, round(passes * count))


def _moment(moment: Any, key: str) -> float | str:
    """A share of the run in [0, 1], or a text such as "10 epochs" or "500 steps". Keys of YAML are texts."""
    if isinstance(moment, str) and re.fullmatch(r"\d+(\.\d+)? (epochs?|steps?)", moment.strip()):
        return moment.strip()
    try:
        share = float(moment)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f'{key}: a moment is a share of the run, "10 epochs" or "500 steps", not {moment!r}')
    return share


@dataclass(frozen=True)
class MixSpec:
    """How several sets are mixed."""

    # weight: by the sets' weights; size: by their number of images (times `repeat`); temperature: by that to 1/T.
    # None: by weight where every set has one, by size where none has
    by: Literal["weight", "size", "temperature"] | None = None
    temperature: float = 2.0
    pure: float = 0.0  # the share of batches that are of one set alone
    exhausted: Literal["again", "stop", "drop"] = "again"  # what happens at the end of a set
    labels: Literal["by_name", "apart", "ignore"] = "by_name"  # what becomes of the sets' classes
    epoch: int | None = None  # images of an epoch; None: as many as the sets last

    def __post_init__(self) -> None:
        if not 1 <= self.temperature:
            raise ValueError(f"temperature: 1 is by size, larger is more even; not {self.temperature}")
        if not 0 <= self.pure <= 1:
            raise ValueError(f"pure: a share lies in [0, 1], not {self.pure}")
        if self.epoch is not None and self.epoch < 1:
            raise ValueError(f"epoch: must be at least 1 image, not {self.epoch}")
