"""The loader over images held in memory: arrays, or a small set decoded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...kernels.crop_resize import crop_resize
from ..images.decode import DecodeError
from ..sources.arrays import ArraySource
from ..spec import ByteSource, ViewSpec
from .base import Plan
from .cpu import CpuLoader
from .device import to_device


class DeviceImages:
    """Every image of a source in one buffer on the device, each written there at its first use."""

    def __init__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> None:
        """`sizes`: (height, width) of the images."""
        sides = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        ends = (3 * sides.prod(1)).cumsum(0)
        self.sizes = sizes
        self.offsets, self.widths = ends - 3 * sides.prod(1), sides[:, 1].to(torch.int32)
        self.pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        self.present = bytearray(len(sizes))

    def add(self, index: int, pixels: np.ndarray) -> None:
        start = int(self.offsets[index])
        flat = torch.from_numpy(np.array(pixels)).flatten()  # a copy: what arrays own may be read-only
        self.pixels[start : start + flat.numel()].copy_(flat)
        self.present[index] = True

    def crops(self, view: ViewSpec, ids: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(count * B, size, size, 3) uint8 of samples (B,) and boxes (count, B, 4)."""
        ids = ids.repeat(len(boxes))
        small = to_device([self.offsets[ids], self.widths[ids], boxes.flatten(0, 1)], self.pixels.device)
        options = {"size": view.size, "interpolation": view.interpolation, "antialias": view.antialias}
        return crop_resize(self.pixels, *small, **options)


class MemoryLoader(CpuLoader):
    """See `BaseLoader`. Every image of the source is decoded at its first use and kept, at 3 bytes a pixel.

    On a GPU they are kept there, and cropped there, if they take no more than half of its free memory, the source knows
    their sizes, and no view is cut from a window or resized by Lanczos; else on the host, where the threads of
    `CpuLoader` make views of them.
    """

    _keeps_on = ("cuda",)  # device types

    def __init__(self, source: ByteSource, inputs, order, **rest) -> None:
        super().__init__(source, inputs, order, **rest)
        self._pixels: dict[int, np.ndarray] = {}
        self._images = self._room()

    def _room(self) -> DeviceImages | None:
        if self.device.type not in self._keeps_on:
            return None
        if any(view.crop == "window" or view.interpolation == "lanczos" for view in self.inputs.views):
            return None
        sizes = [self.source.size(index) for index in range(len(self.source))]
        if None in sizes:
            return None
        size = sum(3 * height * width for height, width in sizes)
        if self.device.type == "cuda" and size > torch.cuda.mem_get_info(self.device)[0] // 2:
            return None
        return DeviceImages(sizes, self.device)

    def _load(self, index: int):
        if self._images is not None:
            return self._load_there(index)
        pixels = self._pixels.get(index)
        if pixels is None:
            if not isinstance(self.source, ArraySource):
                return super()._load(index)
            pixels = self._attempt("read", index, self.source.read, index)
        return None if pixels is None else (pixels, tuple(pixels.shape[:2]))

    def _image(self, index: int, held: np.ndarray) -> np.ndarray | None:
        if isinstance(held, np.ndarray) and held.ndim == 3:
            return held
        pixels = super()._image(index, held)
        if pixels is not None:
            self._pixels[index] = pixels
        return pixels

    def _load_there(self, index: int):
        """Sees to it that the device has an image."""
        if self._images.present[index]:
            return None, self._images.sizes[index]
        if isinstance(self.source, ArraySource):
            pixels = self._attempt("read", index, self.source.read, index)
        else:
            found = super()._load(index)
            pixels = None if found is None else self._attempt("decode", index, self._decode, found[0])
        if pixels is None:
            return None
        if pixels.shape[:2] != self._images.sizes[index]:
            self._reject(index, DecodeError(f"{pixels.shape[:2]} pixels, {self._images.sizes[index]} in the index"))
            return None
        self._images.add(index, pixels)
        return None, self._images.sizes[index]

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        if self._images is None:
            return super()._cut()
        plan = self._plan(self._step)
        views = ((view, plan.params[view.name].crop) for view in plan.inputs.views)
        return plan, {view.name: self._images.crops(view, plan.ids, boxes) for view, boxes in views}
