"""A data plan in words and figures: what `headrace plan` prints, start-up announces and checkpoints keep."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict

import numpy as np

from ..order import Order
from ..sources.subset import Subset
from ..spec import ByteSource
from .mixture import MixedOrder
from .sets import PlannedSource

_FILES = 100_000  # files that are asked for their size; more take longer than a plan should


def plan_hash(source: ByteSource, order: Order | MixedOrder) -> str:
    """16 hexadecimal digits of all that decides which sample is read when, but for seed and batch size: names, counts,
    shares, filters and what they leave. Where the sets lie does not count."""
    if not isinstance(source, PlannedSource):
        facts: object = [len(source), order.last, str(order.blocks)]
    else:
        facts = {"sets": [_facts(planned) for planned in source.plan], "mix": asdict(source.mix)}
        facts["parts"] = [(part.samples, part.weights, part.limit) for part in getattr(order, "parts", ())]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _facts(planned) -> dict:
    spec = asdict(planned.spec)
    spec.pop("source"), spec.pop("table")
    kept = planned.source.ids if isinstance(planned.source, Subset) else ()
    weights = () if planned.favour is None else planned.favour.edges.numpy()
    digests = [_digest(values) for values in (kept, weights)]
    others = planned.follow.columns if planned.follow else {}
    if others:
        spec["columns"] = {name: _digest(values) for name, values in others.items()}
    spec["weight"] = json.dumps(spec["weight"], default=str)
    return {"name": planned.name, "images": len(planned.source), **spec, "kept": digests[0], "weights": digests[1]}


def _digest(values) -> str:
    data = np.ma.filled(values) if np.ma.isMaskedArray(values) else np.asarray(values)
    return hashlib.sha256(np.ascontiguousarray(data).view(np.uint8).data).hexdigest()


def sets_of(source: ByteSource, order: Order | MixedOrder, steps: int) -> list[dict]:
    """What a run of `steps` reads of each set: ``{name, source, images, of, where, weights, share, draws, visits,
    bytes, columns, follows}``. `of` counts the images before the filter; `share` is that of all images the run reads,
    `visits` how often each is read on average; `bytes` of the encoded images, None where nobody knows; `columns` says
    where filter and weights are from, and `follows` whether they are decided anew in each epoch, by the ledger.
    """
    if not isinstance(source, PlannedSource):
        rows = [("data", source.name, source, len(source), None, None, steps * order.global_batch)]
    else:
        given = order.given(steps) if isinstance(order, MixedOrder) else {p.name: len(p.source) for p in source.plan}
        rows = [
            (p.name, p.spec.source, p.source, p.whole, p.spec.where, p.spec.column, given[p.name]) for p in source.plan
        ]
    read = {part.name: part.size for part in getattr(order, "parts", ())}
    plans = {planned.name: planned for planned in getattr(source, "plan", ())}
    total = max(1, sum(row[-1] for row in rows))
    return [
        {
            "name": name,
            "source": place,
            "images": read.get(name, len(own)),
            "of": whole,
            "where": where,
            "weights": column,
            "share": draws / total,
            "draws": draws,
            "visits": draws / read.get(name, len(own)),
            "bytes": _bytes(own),
            "columns": list(plans[name].columns) if name in plans else [],
            "follows": plans[name].follow is not None if name in plans else False,
        }
        for name, place, own, whole, where, column, draws in rows
    ]


def _bytes(source: ByteSource) -> int | None:
    kept, inner = (source.ids, source.source) if isinstance(source, Subset) else (None, source)
    index = getattr(inner, "index", None)
    if isinstance(index, np.ndarray) and index.dtype.names:
        return int((index["size"] if kept is None else index["size"][kept]).sum(dtype=np.int64))
    if not hasattr(inner, "path") or not callable(inner.path) or len(source) > _FILES:
        return None
    try:
        return sum(os.path.getsize(inner.path(i)) for i in (range(len(inner)) if kept is None else kept.tolist()))
    except OSError:
        return None


def in_words(rows: list[dict]) -> list[str]:
    """A line for each of `sets_of`."""
    lines = []
    for row in rows:
        count = f"{row['images']:,} images"
        if row["where"] is not None:
            count = f"{row['images']:,} of {row['of']:,} images where {row['where']}"
        line = f"{row['name']}: {row['source']}: {count}, {row['share']:.1%} of what is read"
        line += f", each {row['visits']:.3g} times" + (f", by {row['weights']}" if row["weights"] else "")
        line += f", {row['bytes'] / 1e6:,.0f} MB" if row["bytes"] is not None else ""
        line += "; by the ledger, anew in each epoch" if row["follows"] else ""
        lines.append(line + "".join(f"; {said}" for said in row["columns"]))
    return lines
