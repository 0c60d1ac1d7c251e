"""Measurements of a set -> what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...pipelines.measure.groups import CUTS, RADIUS, TURNS, duplicate_groups, images_in_both, kept_of, members
from ...pipelines.measure.measure import COLUMNS
from ...pipelines.measure.store import Measured
from ...pipelines.spec import ByteSource
from .rules import Rule, rules_for

if TYPE_CHECKING:
    from .neighbours import Meaning  # torch, which only an encoder needs

_SHOWN = 1000  # keys of a rule in the JSON


@dataclass(frozen=True)
class Search:
    """How near duplicates are looked for."""

    radius: int = RADIUS  # bits
    turns: bool = True  # mirror images and turns by 90 degrees count
    cuts: bool = True  # so do images that were cut by a few percent

    @property
    def options(self) -> dict:
        return {"radius": self.radius, "variants": (TURNS if self.turns else ()) + (CUTS if self.cuts else ())}


@dataclass(frozen=True)
class Overlap:
    """Another set that some images are in as well."""

    source: ByteSource
    pairs: np.ndarray  # (P, 2) int64: image of ours, image of theirs
    about: dict  # what tells the other set: see `store.about`

    @property
    def theirs(self) -> int:
        """How many of the other set's images are in ours."""
        return len(np.unique(self.pairs[:, 1]))


@dataclass
class Findings:
    """All of it, by numbers of images."""

    source: ByteSource
    measured: Measured
    columns: dict[str, np.ndarray]  # what the table holds
    groups: list[np.ndarray] = field(default_factory=list)  # of near duplicates, each in ascending order
    rules: list[tuple[Rule, np.ndarray]] = field(default_factory=list)  # with the images it holds for
    overlaps: list[Overlap] = field(default_factory=list)
    conflicts: list[np.ndarray] = field(default_factory=list)  # groups whose images have several labels
    few: list[tuple[str, int]] = field(default_factory=list)  # classes of few images, and how many
    meaning: Meaning | None = None  # by an encoder, if one was asked

    @property
    def where(self) -> str:
        """The filter that leaves all that is in question out."""
        parts = ["readable"] * bool(self.measured.bad)
        named = {"duplicate": self.groups, "leaked": [o for o in self.overlaps if len(o.pairs)]}
        parts += [f"not {name}" for name, found in named.items() if found]
        parts += ["not outlier"] * bool(self.columns["outlier"].any())
        return " and ".join(parts)

    def to_json(self) -> dict:
        key = self.source.key
        keys = lambda rows: [key(int(row)) for row in rows]
        return {
            "data": self.source.name,
            "images": len(self.source),
            "unreadable": [{"key": key(index), "reason": reason} for index, reason in self.measured.bad],
            "duplicates": [keys(group) for group in self.groups],
            "where": self.where,
            "columns": {name: _summary(self.columns[name], about) for name, about in self.figures().items()},
            "outliers": {
                rule.name: {"where": rule.where, "why": rule.why, "count": len(rows), "keys": keys(rows[:_SHOWN])}
                for rule, rows in self.rules
            },
            "against": [
                {
                    "data": other.source.name,
                    "images": len(other.source),
                    "found": other.theirs,
                    "pairs": [[key(int(a)), other.source.key(int(b))] for a, b in other.pairs],
                }
                for other in self.overlaps
            ],
            "labels": {
                "conflicts": [
                    [{"key": key(int(i)), "class": self.class_of(int(i))} for i in g] for g in self.conflicts
                ],
                "few": [{"class": name, "images": count} for name, count in self.few],
            },
            **({} if self.meaning is None else {"encoder": self._by_encoder()}),
        }

    def _by_encoder(self) -> dict:
        key, found = self.source.key, self.meaning
        asked, pairs = found.asked, zip(self.overlaps, found.pairs)
        return {
            "name": asked.encoder.name,
            "digest": asked.encoder.digest,
            "neighbours": asked.neighbours,
            "cosine": asked.cosine,
            "duplicates": [[key(int(row)) for row in group] for group in found.groups],
            "against": [
                {"data": o.source.name, "pairs": [[key(int(a)), o.source.key(int(b))] for a, b in own]}
                for o, own in pairs
            ],
            "doubtful_labels": [
                {
                    "key": key(doubt.image),
                    "class": self.class_of(doubt.image),
                    "neighbours": self.source.classes[doubt.label],
                    "share": doubt.share,
                }
                for doubt in found.doubts
            ],
        }

    def figures(self) -> dict[str, str]:
        """The columns that hold figures, and what each of them is."""
        known = COLUMNS | (self.meaning.about if self.meaning is not None else {})
        return {name: about for name, about in known.items() if name in self.columns and _is_figure(name)}

    def class_of(self, index: int) -> str | None:
        """Its name; None without a label."""
        label = self.source.label(index)
        return self.source.classes[label] if self.source.classes and label >= 0 else None


def find(
    source: ByteSource,
    measured: Measured,
    others: Sequence[tuple[ByteSource, Measured, dict]],
    search: Search,
    meaning: Meaning | None = None,
) -> Findings:
    """What follows from measurements, and from an encoder's features. `others`: sets to look in as well, with what
    tells each of them."""
    numbers = duplicate_groups(measured.pictures, **search.options)
    columns = {name: np.asarray(measured.rows[name]) for name in measured.rows.dtype.names}
    columns |= {"group": numbers, "duplicate": (numbers >= 0) & ~kept_of(numbers, columns)}
    found = Findings(source, measured, columns, members(numbers), meaning=meaning)
    rules = rules_for(columns)
    if meaning is not None:
        columns |= meaning.columns
        rules.append(meaning.rule)
    found.rules = [(rule, rule.rows(columns)) for rule in rules]
    outlier = np.zeros(len(source), bool)
    for _, rows in found.rules:
        outlier[rows] = True
    columns["outlier"] = outlier
    if source.classes is not None:
        _look_at_labels(found)
    if others:
        columns["leaked"] = np.zeros(len(source), bool)
    for other, theirs, about in others:
        pairs = images_in_both(measured.pictures, theirs.pictures, **search.options)
        columns["leaked"][pairs[:, 0]] = True
        found.overlaps.append(Overlap(other, pairs, about))
    return found


def _look_at_labels(found: Findings) -> None:
    """Near duplicates of several classes, of which all labels but one are wrong; classes of less than a tenth of the
    median class's images."""
    source = found.source
    labels = np.array([source.label(index) for index in range(len(source))])
    found.conflicts = [group for group in found.groups if len(np.unique(labels[group][labels[group] >= 0])) > 1]
    found.columns["label_conflict"] = np.zeros(len(source), bool)
    for group in found.conflicts:
        found.columns["label_conflict"][group] = True
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes))
    found.few = [(source.classes[n], int(counts[n])) for n in np.flatnonzero(counts < np.median(counts) / 10)]


def _is_figure(name: str) -> bool:
    return name not in ("readable", "dct_hash", "block_hash")


def _summary(values: np.ndarray, about: str) -> dict:
    known = values[np.isfinite(values)].astype(np.float64)
    shares = {"least": 0, "p1": 0.01, "median": 0.5, "p99": 0.99, "most": 1}
    found = np.quantile(known, list(shares.values())).tolist() if len(known) else [None] * len(shares)
    return {"about": about, "known": len(known), **dict(zip(shares, found))}
