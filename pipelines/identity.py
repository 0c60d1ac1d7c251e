"""Which data set a source is, told in a moment however large it is: what a checkpoint notes of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .sources.arrays import ArraySource
from .sources.files import FileSource
from .sources.mapped import MappedSource
from .sources.subset import Subset

if TYPE_CHECKING:
    from .spec import ByteSource

LOOKED_AT = 1024  # samples whose names, labels and sizes count, spread evenly; all of them where there are no more
READ = 16  # of which the bytes count as well, and the labels of sources that may have to read for them


def identity(source: ByteSource, blocks: int | tuple[int, ...] | None = None) -> dict[str, int | str | None]:
    """What tells data sets apart, wherever they lie: {images, classes, names, labels, sizes, contents, ...}.

    Counts as they are, the rest as 12 hexadecimal digits. `sizes` are bytes where samples are files or lie in them,
    else (height, width). `blocks` are those of `Order`, whose sizes a shuffle by shards depends on. A value that a
    source does not have is left out, so that two notes are compared in what both of them hold.
    """
    some, few = spread(len(source), LOOKED_AT), spread(len(source), READ)
    ours = isinstance(source, FileSource | MappedSource | ArraySource | Subset)
    if callable(glance := getattr(source, "glance", None)):  # of one that is far away, all of it at once
        glance(some, few)
    contents = [_digest(_of(source.read, index) for index in few) for _ in range(1 if ours else 2)]
    found = {
        "images": len(source),
        "classes": None if source.classes is None else len(source.classes),
        "class names": None if source.classes is None else _digest(source.classes),
        "names": _digest(source.key(index) for index in some),
        "labels": _digest(source.label(index) for index in (some if ours else few)),
        "sizes": _digest(_size(source, index) for index in some),
    }
    if contents[0] == contents[-1]:  # a data set of somebody's may give another crop each time it is asked
        found["contents"] = contents[0]
    if hasattr(source, "boxes"):
        found["boxes"] = _digest(_of(source.boxes, index) for index in some)
    if hasattr(source, "target"):
        found["masks"] = _digest(_of(source.target, index) for index in few)
    if isinstance(blocks, tuple):
        found["shards"] = _digest(blocks)
    return found


def spread(count: int, most: int) -> list[int]:
    """At most `most` of ``range(count)``, the first and the last among them: one put in and another taken out anywhere
    between two of them move all that lie between."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()


def _size(source: ByteSource, index: int) -> object:
    if isinstance(source, Subset):
        return _size(source.source, source.ids[index])
    if not isinstance(source, FileSource | MappedSource):
        return source.size(index)
    try:
        return source.extent(index)[2]
    except OSError:
        return None


def _of(give: Callable[[int], object], index: int) -> object:
    """What cannot be had, of a stream or a file that has gone, is as good as nothing."""
    try:
        return give(index)
    except (OSError, UserError):
        return None


def _digest(values: Iterable[object]) -> str:
    total = hashlib.sha256()
    for value in values:
        parts = vars(value).values() if hasattr(value, "__dataclass_fields__") else (value,)
        for part in parts:
            data = (
                np.ascontiguousarray(part).data
                if isinstance(part, np.ndarray)
                else str(part).encode("utf-8", "surrogatepass")
            )
            total.update(b"%d:" % len(data))
            total.update(data)
    return total.hexdigest()[:12]
