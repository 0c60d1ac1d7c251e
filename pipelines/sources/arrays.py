"""Images that are arrays already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .class_numbers import class_numbers


class ArraySource:
    """Decoded images as a source: (N, H, W, 3) uint8, or a sequence of (H, W, 3) arrays, with optional labels (N,)."""

    def __init__(self, images, labels: Sequence[int] | None = None, *, name: str = "arrays") -> None:
        self.images, self.name = images, name
        self.labels = None if labels is None else class_numbers(labels, len(images), name, "images").tolist()
        self.classes = None if labels is None else [str(c) for c in range(max(self.labels, default=-1) + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8: pixels rather than bytes, which only `MemoryLoader` takes."""
        return self.images[index]

    def label(self, index: int) -> int:
        return -1 if self.labels is None else self.labels[index]

    def key(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def size(self, index: int) -> tuple[int, int]:
        return tuple(self.images[index].shape[:2])
