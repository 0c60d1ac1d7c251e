"""Some samples of another source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
