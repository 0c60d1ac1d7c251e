"""Several sets, opened and filtered, as one source."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

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
    columns = Columns(source, spec.table, where, spec.source)
    if spec.where is not None:
        kept = np.flatnonzero(Where(spec.where, f"{where}.where").rows(columns)).astype(np.int64)
        if not len(kept):
            raise UserError(f"{where}.where: {spec.where!r} leaves none of {whole:,} images; widen it")
    favour = None
    if spec.column is not None:
        from .favour import Favour  # torch, which workers that shard such a source do without

        weights = columns(spec.column)
        favour = Favour(weights if kept is None else weights[kept], spec.draw, f"{where}.weight: {spec.column}")
    return Planned(name, spec, source if kept is None else Subset(source, kept), whole, favour)


def open_plan(given: Mapping[str, Any], mix: Mapping[str, Any] | MixSpec | None = None) -> PlannedSource:
    """The source of ``{name: {source: ..., weight: ...}, ...}``, a name for each set; a text stands for its source.

    Raises `UserError` for anything else, and for sets that cannot be opened.
    """
    if not given:
        raise UserError("data.train: an empty mapping; give at least one set, as in {photos: {source: path}}")
    for name in given:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"data.train: {name!r} is no name of a set; keys begin with it, so give a text of one line")
    sets = {name: _made(SetSpec, value, f"data.train.{name}") for name, value in given.items()}
    return PlannedSource(sets, _made(MixSpec, mix or {}, "data.mix"))


class _Plain(yaml.SafeLoader):
    """YAML as recipes have it: 1e-4 is a number, and a key that is given twice an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else None)
        return super().construct_mapping(node, deep)


_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)

_opening: ContextVar[tuple[str, ...]] = ContextVar("_opening", default=())  # files of plans that are being opened


def open_plan_file(path: str) -> PlannedSource:
    """The source of a YAML file with the keys `sets` and `mix`: ``plan:mix.yaml`` wherever a source is named."""
    try:
        given = yaml.load(Path(path).read_text("utf-8"), _Plain)
    except (OSError, ValueError, yaml.YAMLError) as fault:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(fault).split())})") from None
    if not isinstance(given, Mapping) or not isinstance(given.get("sets"), Mapping) or given.keys() - {"sets", "mix"}:
        raise UserError(f"{path}: a plan has the keys sets and mix; sets is a mapping of names to sources")
    file = os.path.realpath(path)
    if file in _opening.get():
        raise UserError(f"{path}: names itself among its sets; give sets of images")
    token = _opening.set((*_opening.get(), file))
    try:
        source = open_plan(given["sets"], given.get("mix"))
    finally:
        _opening.reset(token)
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
    value = {key: str(v) if isinstance(v, Path) else v for key, v in value.items()}
    for key, wanted in get_type_hints(kind).items():
        if key in value and not _fits(value[key], wanted):
            raise UserError(f"{where}: {key}: needs {_in_words(wanted)}, got {value[key]!r}")
    try:
        return kind(**value)
    except ValueError as fault:
        raise UserError(f"{where}: {fault}") from None


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a field's type: a recipe's loader has seen to that, a mapping in Python comes as it is."""
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in get_args(wanted)
    if get_args(wanted):
        return any(_fits(value, one) for one in get_args(wanted))
    if wanted is Any:
        return True
    return isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)


def _in_words(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(get_args(wanted))
    if get_args(wanted):
        return " or ".join(_in_words(one) for one in get_args(wanted) if one is not type(None))
    return {str: "a text", int: "a whole number", float: "a number"}[wanted]
