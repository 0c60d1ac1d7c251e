"""Several sets, opened and filtered, as one source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from ...outside import nearest
from ...schema.check import Checker
from ...schema.tree import from_plain, plain
from ...schema.yaml_nodes import Node, parse
from ..sources import open_source
from ..sources.subset import Subset
from .columns import Columns
from .mixed import MixedSource
from .spec import MixSpec, SetSpec
from .where import Where

if TYPE_CHECKING:
    from ..spec import ByteSource
    from .favour import Favour
    from .follow import Follow


@dataclass(frozen=True)
class Planned:
    """A set as it was opened."""

    name: str
    spec: SetSpec
    source: ByteSource  # after the filter
    whole: int  # images before it
    favour: Favour | None = None  # which samples are given how often
    follow: Follow | None = None  # what of that is decided by the run itself, anew in each epoch
    columns: tuple[str, ...] = ()  # what the filter and the weights were read from, in words


class PlannedSource(MixedSource):
    """Several sets as one source, with what is to be read of them: `plan` and `mix`; see `mixture.order_of`."""

    def __init__(self, sets: Mapping[str, SetSpec], mix: MixSpec) -> None:
        self.mix = mix
        self.plan = [_opened(name, spec) for name, spec in sets.items()]
        super().__init__([p.name for p in self.plan], [p.source for p in self.plan], mix.labels)


def _opened(name: str, spec: SetSpec) -> Planned:
    at = f"data.train.{name}"
    source = open_source(spec.source)
    columns, kept, favour = Columns(source, spec.table, at, spec.source), None, None
    where = None if spec.where is None else Where(spec.where, f"{at}.where")
    asked = [*(where.columns if where else ()), *([spec.column] if spec.column else [])]
    if any(column.startswith("ledger_") for column in asked):
        return _following(name, spec, source, columns, where, asked)
    if where is not None:
        kept = np.flatnonzero(where.rows(columns)).astype(np.int64)
        if not len(kept):
            raise UserError(f"{at}.where: {spec.where!r} leaves none of {len(source):,} images; widen it")
    if spec.column is not None:
        from .favour import Favour  # torch, which workers that shard such a source do without

        weights = columns(spec.column)
        favour = Favour(weights if kept is None else weights[kept], spec.draw, f"{at}.weight: {spec.column}")
    own = source if kept is None else Subset(source, kept)
    return Planned(name, spec, own, len(source), favour, columns=columns.said())


def _following(
    name: str, spec: SetSpec, source: ByteSource, columns: Columns, where: Where | None, asked: list[str]
) -> Planned:
    """A set whose filter or weights name columns of the run's ledger."""
    from .follow import LEDGER, Follow

    for column in asked:
        if column.startswith("ledger_") and column not in LEDGER:
            raise UserError(f"data.train.{name}: no column {column!r} of a ledger{nearest(column, list(LEDGER))}")
    others = {column: columns(column) for column in asked if column not in LEDGER}
    follow = Follow(where, spec.column, spec.draw, others, f"data.train.{name}")
    return Planned(name, spec, source, len(source), None, follow, columns.said())


def open_plan(given: Mapping[str, Any], mix: Mapping[str, Any] | MixSpec | None = None) -> PlannedSource:
    """The source of ``{name: {source: ..., weight: ...}, ...}``, a name for each set; a text stands for its source.

    Raises `UserError` for anything else, with a line per problem, and for sets that cannot be opened.
    """
    return _planned(from_plain(plain(given), "").root, from_plain(plain({} if mix is None else mix), "").root)


_opening: ContextVar[tuple[str, ...]] = ContextVar("_opening", default=())  # files of plans that are being opened


def open_plan_file(path: str) -> PlannedSource:
    """The source of a YAML file with the keys `sets` and `mix`: ``plan:mix.yaml`` wherever a source is named."""
    try:
        root = parse(Path(path).read_text("utf-8"), lambda line: f"{path}:{line}")
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: cannot be read ({fault})") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be a plan") from None
    keys = root.value if isinstance(root.value, dict) else {}
    if not isinstance(keys.get("sets", root).value, dict) or keys.keys() - {"sets", "mix"} or not keys:
        raise UserError(f"{path}: a plan has the keys sets and mix; sets is a mapping of names to sources")
    file = os.path.realpath(path)
    if file in _opening.get():
        raise UserError(f"{path}: names itself among its sets; give sets of images")
    token = _opening.set((*_opening.get(), file))
    try:
        source = _planned(keys["sets"], keys.get("mix", Node({}, "")))
    finally:
        _opening.reset(token)
    source.name = path
    return source


def _planned(sets: Node, mix: Node) -> PlannedSource:
    if not sets.value:
        raise UserError("data.train: an empty mapping; give at least one set, as in {photos: {source: path}}")
    for name in sets.value:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"data.train: {name!r} is no name of a set; keys begin with it, so give a text of one line")
    checker = Checker()
    specs = {
        name: checker.value(
            node if isinstance(node.value, dict) else Node({"source": node}, node.origin), SetSpec, f"data.train.{name}"
        )
        for name, node in sets.value.items()
    }
    made = checker.value(mix, MixSpec, "data.mix")
    if checker.problems:
        raise UserError("\n".join(checker.problems))
    return PlannedSource(specs, made)
