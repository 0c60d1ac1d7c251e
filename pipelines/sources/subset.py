"""Some samples of another source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..spec import ByteSource


class Subset:
    """The samples `ids` of `source`, in that order, counted from 0."""

    def __init__(self, source: ByteSource, ids: Sequence[int]) -> None:
        self.source, self.ids = source, ids
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int):
        return self.source.read(self.ids[index])

    def label(self, index: int) -> int:
        return self.source.label(self.ids[index])

    def key(self, index: int) -> str:
        return self.source.key(self.ids[index])

    def size(self, index: int):
        return self.source.size(self.ids[index])

    @property
    def decoded(self) -> bool:
        return getattr(self.source, "decoded", False)

    # ---- of one that is far away

    @property
    def follow(self) -> Callable | None:
        inner = getattr(self.source, "follow", None)
        return inner and self._follow

    def _follow(self, reader: object, coming: Callable[[int], Iterable[int]], step: int) -> None:
        self.source.follow(reader, lambda step: np.asarray(self.ids)[np.asarray(coming(step))], step)

    def leave(self, reader: object) -> None:
        self.source.leave(reader)

    def hurry(self) -> None:
        self.source.hurry()

    @property
    def glance(self) -> Callable | None:
        inner = getattr(self.source, "glance", None)
        return inner and (lambda keys=(), images=(): inner([self.ids[i] for i in keys], [self.ids[i] for i in images]))
