"""The loader over images held in memory: arrays, or a small set decoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch

from ...kernels.crop_resize import crop_resize
from ..images.budget import reserve
from ..images.decode import DecodeError
from ..images.planes import Planes
from ..images.rules import rules
from ..pixels.sidecars import Pixels
from ..spec import ByteSource, ViewSpec
from ..views.cut import as_rgb
from .base import Plan
from .cpu import CHUNK, Coming, CpuLoader
from .device import CopyStream, to_device


class DeviceImages:
    """Every image of a source in one buffer on the device, each written there at its first use, in any thread."""

    def __init__(self, sizes: Sequence[tuple[int, int]], device: torch.device, copies: CopyStream | None) -> None:
        """`sizes`: (height, width) of the images; `copies`: to a GPU, as threads would wait for its steps otherwise."""
        self._copies = copies
        sides = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        ends = (3 * sides.prod(1)).cumsum(0)
        self.sizes = sizes
        self.offsets, self.widths = ends - 3 * sides.prod(1), sides[:, 1].to(torch.int32)
        total = int(ends[-1])
        self.pixels = torch.empty(-(-total // 4) * 4, dtype=torch.uint8, device=device)[:total]  # in whole words
        self.present = bytearray(len(sizes))

    def add(self, index: int, pixels: np.ndarray) -> None:
        start = int(self.offsets[index])
        flat = torch.from_numpy(np.array(pixels)).flatten()  # a copy: what arrays own may be read-only
        place = self.pixels[start : start + flat.numel()]
        if self._copies is None:
            place.copy_(flat)
        else:
            self._copies.write(place, flat)
        self.present[index] = True

    def crops(self, view: ViewSpec, ids: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(count * B, size, size, 3) uint8 of samples (B,) and boxes (count, B, 4)."""
        ids = ids.repeat(len(boxes))
        small = to_device([self.offsets[ids], self.widths[ids], boxes.flatten(0, 1)], self.pixels.device)
        options = {"size": view.size, "interpolation": view.interpolation, "antialias": view.antialias}
        return crop_resize(self.pixels, *small, **options)


class Held(Pixels):
    """`Pixels` in memory: each image kept there at its first use, by whoever had to decode it, or out of `stored`."""

    words = "in memory"

    def __init__(self, source: ByteSource, stored: Pixels | None) -> None:
        self._arrays = source if getattr(source, "decoded", False) else None
        self._stored, self._kept = stored, {}

    def image(self, index: int) -> np.ndarray | Planes | None:
        if self._arrays is not None:
            return self._arrays.read(index)
        found = self._kept.get(index)
        if found is None and self._stored is not None and (found := self._stored.image(index)) is not None:
            self._stored.ask(index)
            found = found._replace(flat=found.flat.copy()) if isinstance(found, Planes) else found.copy()
            self._kept[index] = found
        return found

    def size(self, index: int) -> tuple[int, int] | None:
        return None if self._stored is None else self._stored.size(index)

    def keep(self, index: int, image: np.ndarray) -> None:
        self._kept[index] = image


class MemoryLoader(CpuLoader):
    """See `CpuLoader`. Every image of the source is decoded at its first use, or taken from `pixels`, and kept.

    On a GPU they are kept there, and cropped there, if they take no more than half of its free memory, the source knows
    their sizes, they are RGB of eight bits, and no view is cut from a window or resized by Lanczos; else on the host.
    """

    _keeps_on = ("cuda",)  # device types

    def __init__(self, source: ByteSource, inputs, order, *, pixels: Pixels | None = None, **rest) -> None:
        super().__init__(source, inputs, order, pixels=Held(source, pixels), **rest)
        self._images = self._room()

    def _room(self) -> DeviceImages | None:
        if self.device.type not in self._keeps_on or rules().channels is not None:
            return None
        if any(view.crop == "window" or view.interpolation == "lanczos" for view in self.inputs.views):
            return None
        sizes = [self._pixels.size(index) or self.source.size(index) for index in range(len(self.source))]
        if None in sizes:
            return None
        size = sum(3 * height * width for height, width in sizes)
        if self.device.type == "cuda" and size > torch.cuda.mem_get_info(self.device)[0] // 2:
            return None
        return DeviceImages(sizes, self.device, self._copies)

    def _load(self, index: int):
        if self._images is not None and self._images.present[index]:
            return None, self._images.sizes[index]
        return super()._load(index)

    def _image(self, index: int, held) -> np.ndarray | Planes | None:
        image = super()._image(index, held)
        if image is not held and image is not None:
            self._pixels.keep(index, image)
        return image

    # ---- images on the device

    def _prepare(self, step: int) -> Coming:
        if self._images is None:
            return super()._prepare(step)
        plan = self._plan(step)
        new = [b for b, held in enumerate(plan.encoded) if held is not None]
        starts = range(0, len(new), CHUNK)
        parts: list[Future] = [self._cutters.submit(self._bring, plan, new[start : start + CHUNK]) for start in starts]
        return Coming(plan, {}, parts, None)

    def _bring(self, plan: Plan, places: Sequence[int]) -> bool:
        """Decodes samples of a plan and writes them on the device; whether all could be."""
        for b in places:
            index, expected = int(plan.ids[b]), self._images.sizes[int(plan.ids[b])]
            with reserve(math.prod(plan.sizes[b])):
                image = super()._image(index, plan.encoded[b])
                if image is None:
                    return False
                pixels = as_rgb(image)
                if pixels.shape[:2] != expected:
                    self._reject(index, DecodeError(f"{pixels.shape[:2]} pixels, {expected} in the index"))
                    return False
                self._images.add(index, pixels)
        return True

    def _crops(self, coming: Coming) -> dict[str, torch.Tensor]:
        if self._images is None:
            return super()._crops(coming)
        plan = coming.plan
        boxes = {view: plan.params[view.name].crop for view in plan.inputs.views}
        return {view.name: self._images.crops(view, plan.ids, crop) for view, crop in boxes.items()}
