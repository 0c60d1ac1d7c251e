"""Several sources as one."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import UserError
from ..sources.arrays import ArraySource
from ..sources.stream import StreamSource

if TYPE_CHECKING:
    from ..spec import ByteSource


class MixedSource:
    """The samples of `sources`, one set after another; a key begins with its set's name.

    Classes are merged by name (``by_name``), kept apart as ``set/class`` (``apart``), or ignored (``ignore``). Sets
    without labels give -1.

    Raises `UserError` for sources that are read in another way than by index and bytes.
    """

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[ByteSource],
        labels: Literal["by_name", "apart", "ignore"] = "by_name",
        *,
        name: str | None = None,
    ) -> None:
        for own, source in zip(names, sources):
            if isinstance(source, (StreamSource, ArraySource)):
                kind = "a stream" if isinstance(source, StreamSource) else "arrays"
                raise UserError(
                    f"data.train.{own}: {source.name}: {kind} cannot be one of several sets; copy it to disk"
                )
        self.names, self.sources = list(names), list(sources)
        self.name = name or " + ".join(names)
        self.starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()
        self.classes, self._labels = _merged(self.names, self.sources, labels)

    def __len__(self) -> int:
        return self.starts[-1]

    def origin(self, index: int) -> int:
        """The number of the set that a sample belongs to."""
        return bisect_right(self.starts, index) - 1

    def _inside(self, index: int) -> tuple[int, ByteSource, int]:
        number = self.origin(index)
        return number, self.sources[number], index - self.starts[number]

    def read(self, index: int):
        _, source, inside = self._inside(index)
        return source.read(inside)

    def label(self, index: int) -> int:
        if self.classes is None:
            return -1
        number, source, inside = self._inside(index)
        label = source.label(inside)
        return -1 if label < 0 or self._labels[number] is None else self._labels[number][label]

    def key(self, index: int) -> str:
        number, source, inside = self._inside(index)
        return f"{self.names[number]}/{source.key(inside)}"

    def size(self, index: int) -> tuple[int, int] | None:
        _, source, inside = self._inside(index)
        return source.size(inside)

    def neighbours(self, index: int) -> tuple[int, int]:
        """(first, last): the samples [first, last) of the same file, or of the same set where it has no files."""
        number, source, inside = self._inside(index)
        start = self.starts[number]
        first, last = source.neighbours(inside) if hasattr(source, "neighbours") else (0, len(source))
        return start + first, start + last

    def place(self, index: int) -> tuple[Any, Any]:
        _, source, inside = self._inside(index)
        return source.place(inside) if hasattr(source, "place") else (None, None)

    # ---- of sources that are far away

    @property
    def _far(self) -> list[tuple[int, ByteSource]]:
        return [(n, source) for n, source in enumerate(self.sources) if getattr(source, "follow", None) is not None]

    @property
    def follow(self) -> Callable | None:
        return self._follow if self._far else None

    def _follow(self, reader: object, coming: Callable[[int], Iterable[int]], step: int) -> None:
        def own(number: int, step: int) -> np.ndarray:
            ids = np.asarray(coming(step))
            return ids[(ids >= self.starts[number]) & (ids < self.starts[number + 1])] - self.starts[number]

        for number, source in self._far:
            source.follow(reader, partial(own, number), step)

    def leave(self, reader: object) -> None:
        for _, source in self._far:
            source.leave(reader)

    def hurry(self) -> None:
        for _, source in self._far:
            source.hurry()

    def glance(self, keys: Iterable[int] = (), images: Iterable[int] = ()) -> None:
        """Keys and images of sources that are far away will be asked for."""
        for number, source in self._far:
            first, last = self.starts[number : number + 2]
            source.glance(*([i - first for i in ids if first <= i < last] for ids in (keys, images)))


def _merged(names, sources, how) -> tuple[list[str] | None, list[list[int] | None]]:
    """The classes of all, and for each source what its labels become."""
    if how == "ignore" or all(source.classes is None for source in sources):
        return None, [None] * len(sources)
    classes: dict[str, int] = {}
    tables: list[list[int] | None] = []
    for name, source in zip(names, sources):
        own = None if source.classes is None else [unicodedata.normalize("NFC", c) for c in source.classes]
        own = own and ([f"{name}/{c}" for c in own] if how == "apart" else own)
        tables.append(own and [classes.setdefault(c, len(classes)) for c in own])
    return list(classes), tables
