"""The loader over images held in memory: arrays, or a small set decoded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from .base_loader import BaseLoader, Plan
from .decode import decode
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

    def _fetch(self, index: int):
        pixels = self._pixels.get(index)
        if pixels is None:
            if isinstance(self.source, ArraySource):
                pixels = self.source.read(index)
            else:
                index, encoded, _ = super()._fetch(index)
                try:
                    pixels = decode(encoded)
                except ValueError as fault:
                    self._reject(index, fault)
                    return self._fetch(index)
            self._pixels[index] = pixels
        return index, pixels, tuple(pixels.shape[:2])

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        plan = self._plan(self._step)
        images = [torch.as_tensor(pixels).permute(2, 0, 1) for pixels in plan.encoded]
        crops = {}
        for view in self.inputs.views:
            boxes = plan.params[view.name].crop.tolist()
            pixels = [
                crop_and_resize(image, box, view.size, view.interpolation)
                for copy in boxes
                for image, box in zip(images, copy)
            ]
            crops[view.name] = torch.stack(pixels).permute(0, 2, 3, 1).to(self.device)
        return plan, crops


def crop_and_resize(image: torch.Tensor, box: Sequence[int], size: int, interpolation: str) -> torch.Tensor:
    """(3, H, W) uint8 and a box (left, top, width, height) -> (3, size, size) uint8, antialiased."""
    left, top, width, height = box
    crop = image[None, :, top : top + height, left : left + width]
    crop = crop.contiguous(memory_format=torch.channels_last)  # a strided crop takes torch's slow path: 10 times slower
    return F.interpolate(crop, (size, size), mode=interpolation, antialias=True, align_corners=False)[0]
