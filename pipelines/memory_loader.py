"""The loader over images held in memory: arrays, or a small set decoded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..errors import UserError
from .base_loader import BaseLoader, Plan
from .cut import crop_and_resize, decode_fast
from .spec import ByteSource


class ArraySource:
    """Decoded images as a source: (N, H, W, 3) uint8, or a sequence of (H, W, 3) arrays, with optional labels (N,)."""

    def __init__(self, images, labels: Sequence[int] | None = None, *, name: str = "arrays") -> None:
        self.images, self.name = images, name
        self.labels = None if labels is None else [int(label) for label in labels]
        self.classes = None if labels is None else [str(c) for c in range(max(self.labels, default=-1) + 1)]
        if labels is not None and len(self.labels) != len(images):
            raise UserError(f"{name}: {len(images)} images but {len(self.labels)} labels")

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


class MemoryLoader(BaseLoader):
    """See `BaseLoader`. Every image of the source is decoded at its first use and kept, at 3 bytes a pixel."""

    def __init__(self, source: ByteSource, inputs, order, **rest) -> None:
        super().__init__(source, inputs, order, **rest)
        self._pixels: dict[int, np.ndarray] = {}

    def _load(self, index: int):
        pixels = self._pixels.get(index)
        if pixels is None:
            if isinstance(self.source, ArraySource):
                pixels = self._attempt("read", index, self.source.read, index)
            elif (found := super()._load(index)) is not None:
                pixels = self._attempt("decode", index, decode_fast, found[0])
            if pixels is None:
                return None
            self._pixels[index] = pixels
        return pixels, tuple(pixels.shape[:2])

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        plan = self._plan(self._step)
        crops = {}
        for view in self.inputs.views:
            pixels = torch.empty((view.count, self.batch_size, view.size, view.size, 3), dtype=torch.uint8)
            for boxes, rows in zip(plan.params[view.name].crop.tolist(), pixels.numpy()):
                for image, box, out in zip(plan.encoded, boxes, rows):
                    crop_and_resize(image, box, view.interpolation, out)
            crops[view.name] = pixels.flatten(0, 1).to(self.device)
        return plan, crops
