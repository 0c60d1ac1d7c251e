"""Images that are arrays already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import UserError
from ..images.channels import levels_of, samples_of
from ..images.decode import DecodeError
from ..images.rules import rules
from .class_numbers import class_numbers


def deep_arrays(images, labels: Sequence[int] | None) -> ArraySource | None:
    """Arrays as a source of deep images; None where this process reads RGB of eight bits. Raises `UserError`."""
    if rules().channels is None:
        return None
    for image in images[:1] if isinstance(images, np.ndarray) else images:
        if not isinstance(image, np.ndarray):
            raise UserError(f"data: images are arrays, or paths; got {type(image).__name__}")
        try:
            samples_of(image, rules().channels)
        except DecodeError as fault:
            raise UserError(f"data: {fault}") from None
    return ArraySource(images, labels)


class ArraySource:
    """Decoded images as a source: (N, H, W, 3) uint8, or a sequence of (H, W, 3) arrays, with optional labels (N,).

    Where `rules().channels` is set: arrays as `images.channels.samples_of` takes them.
    """

    decoded = True

    def __init__(self, images, labels: Sequence[int] | None = None, *, name: str = "arrays") -> None:
        self.images, self.name = images, name
        self.labels = None if labels is None else class_numbers(labels, len(images), name, "images").tolist()
        self.classes = None if labels is None else [str(c) for c in range(max(self.labels, default=-1) + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, or (H, W, C) uint16: pixels rather than bytes, which only `MemoryLoader` takes."""
        image = self.images[index]
        return image if rules().channels is None else levels_of(image)

    def label(self, index: int) -> int:
        return -1 if self.labels is None else self.labels[index]

    def key(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def size(self, index: int) -> tuple[int, int]:
        shape, channels = self.images[index].shape, rules().channels
        return tuple(shape[:2] if channels is None or shape[2:] in ((), (channels,)) else shape[1:])
