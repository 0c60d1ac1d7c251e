"""Several sets, opened and filtered, as one source."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ...errors import UserError
from ..sources import open_source
from ..sources.subset import Subset
from .columns import Columns
from .mixed import MixedSource
from .spec import MixSpec, SetSpec
from .where import Where

if TYPE_CHECKING:
    from ..spec import ByteSource
    from .favour import Favour


@dataclass(frozen=True)
class Planned:
    """A set as it was opened."""

    name: str
    spec: SetSpec
    source: ByteSource  # after the filter
    whole: int  # images before it
    favour: Favour | None = None  # which samples are given how often


class PlannedSource(MixedSource):
    """Several sets as one source, with what is to be read of them: `plan` and `mix`; see `mixture.order_of`."""

    def __init__(self, sets: Mapping[str, SetSpec], mix: MixSpec) -> None:
        self.mix = mix
        self.plan = [_opened(name, spec) for name, spec in sets.items()]
        super().__init__([p.name for p in self.plan], [p.source for p in self.plan], mix.labels)


def _opened(name: str, spec: SetSpec) -> Planned:
    where = f"data.train.{name}"
    source = open_source(spec.source)
    whole, kept = len(source), None
    columns = Columns(source, spec.table, where)
    if spec.where is not None:
        kept = np.flatnonzero(Where(spec.where, f"{where}.where").rows(columns)).astype(np.int64)
        if not len(kept):
            raise UserError(f"{where}.where: {spec.where!r} leaves none of {whole:,} images; widen it")
    favour = None
    if spec.column is not None:
        from .favour import Favour  # torch, which workers that shard such a source do without

        weights = np.asarray(columns(spec.column))
        favour = Favour(weights if kept is None else weights[kept], spec.draw, f"{where}.weight: {spec.column}")
    return Planned(name, spec, source if kept is None else Subset(source, kept), whole, favour)


def open_plan(given: Mapping[str, Any], mix: Mapping[str, Any] | MixSpec | None = None) -> PlannedSource:
    """The source of ``{name: {source: ..., weight: ...}, ...}``, a name for each set; a text stands for its source.

    Raises `UserError` for anything else, and for sets that cannot be opened.
    """
    if not given:
        raise UserError("data.train: an empty mapping; give at least one set, as in {photos: {source: path}}")
    sets = {name: _made(SetSpec, value, f"data.train.{name}") for name, value in given.items()}
    return PlannedSource(sets, _made(MixSpec, mix or {}, "data.mix"))


def open_plan_file(path: str) -> PlannedSource:
    """The source of a YAML file with the keys `sets` and `mix`: ``plan:mix.yaml`` wherever a source is named."""
    try:
        given = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as fault:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(fault).split())})") from None
    if not isinstance(given, Mapping) or not isinstance(given.get("sets"), Mapping) or given.keys() - {"sets", "mix"}:
        raise UserError(f"{path}: a plan has the keys sets and mix; sets is a mapping of names to sources")
    source = open_plan(given["sets"], given.get("mix"))
    source.name = path
    return source


def _made(kind: type, value: Any, where: str):
    if isinstance(value, kind):
        return value
    if kind is SetSpec and isinstance(value, str):
        value = {"source": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: needs a mapping, got {value!r}")
    known = [f.name for f in fields(kind)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    if kind is SetSpec and not isinstance(value.get("source"), (str, Path)):
        raise UserError(f"{where}: source: missing; name the images, as in {{source: photos, weight: 0.3}}")
    try:
        return kind(**{key: str(v) if key == "source" else v for key, v in value.items()})
    except (ValueError, TypeError) as fault:
        raise UserError(f"{where}: {fault}") from None
