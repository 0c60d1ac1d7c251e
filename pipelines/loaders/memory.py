"""The loader over images held in memory: arrays, or a small set decoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch

from ..images.budget import reserve
from ..images.planes import Planes
from ..pixels.layout import bytes_of
from ..pixels.sidecars import Pixels
from ..spec import ByteSource
from .base import Plan
from .cpu import CHUNK, Coming, CpuLoader
from .device import CopyStream
from .packed import Packed


class DeviceImages(Packed):
    """Every image of a source in one buffer on the device, each written there at its first use, in any thread."""

    def __init__(
        self, form: str, sizes: Sequence[tuple[int, int]], device: torch.device, copies: CopyStream | None
    ) -> None:
        """`copies`: to a GPU, as threads would wait for its steps otherwise."""
        super().__init__(form, sizes)
        self._copies = copies
        self.pixels = torch.empty(self.length, dtype=torch.uint8, device=device)
        self.present = bytearray(len(sizes))

    def add(self, index: int, image: np.ndarray | Planes) -> None:
        for start, flat in self.pieces(index, image):
            values = torch.from_numpy(np.array(flat))  # a copy: what arrays own may be read-only
            place = self.pixels[start : start + len(values)]
            if self._copies is None:
                place.copy_(values)
            else:
                self._copies.write(place, values)
        self.present[index] = True


class Held(Pixels):
    """`Pixels` in memory: each image kept there at its first use, by whoever had to decode it, or out of `stored`."""

    words = "in memory"

    def __init__(self, source: ByteSource, stored: Pixels | None) -> None:
        self._arrays = source if getattr(source, "decoded", False) else None
        self.stored, self._kept = stored, {}
        self.form = "rgb" if stored is None else stored.form

    def image(self, index: int) -> np.ndarray | Planes | None:
        if self._arrays is not None:
            return self._arrays.read(index)
        found = self._kept.get(index)
        if found is None and self.stored is not None and (found := self.stored.image(index)) is not None:
            self.stored.ask(index)
            found = found._replace(flat=found.flat.copy()) if isinstance(found, Planes) else found.copy()
            self._kept[index] = found
        return found

    def size(self, index: int) -> tuple[int, int] | None:
        return None if self.stored is None else self.stored.size(index)

    def keep(self, index: int, image: np.ndarray) -> None:
        self._kept[index] = image

    def drop(self, index: int) -> None:
        """Of an image that is held elsewhere by now."""
        self._kept.pop(index, None)


class MemoryLoader(CpuLoader):
    """See `CpuLoader`. Every image of the source is decoded at its first use, or taken from `pixels`, and kept.

    On a GPU they are kept there, and cropped there, if they take no more than half of its free memory, the source knows
    their sizes, they are of eight bits, and the kernel cuts all views; else on the host.
    """

    def __init__(self, source: ByteSource, inputs, order, *, pixels: Pixels | None = None, **rest) -> None:
        super().__init__(source, inputs, order, pixels=Held(source, pixels), **rest)
        self._images = self._room()

    def _room(self) -> DeviceImages | None:
        if not self._cuts_there(self._pixels.form):
            return None
        # An image that did not decode when the others were stored gets no room.
        none = None if self._pixels.stored is None else (0, 0)
        sizes = [self._pixels.size(index) or self.source.size(index) or none for index in range(len(self.source))]
        if None in sizes:
            return None
        size = sum(bytes_of(self._pixels.form, height, width) for height, width in sizes)
        if self.device.type == "cuda" and size > torch.cuda.mem_get_info(self.device)[0] // 2:
            return None
        return DeviceImages(self._pixels.form, sizes, self.device, self._copies)

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
            index = int(plan.ids[b])
            with reserve(math.prod(plan.sizes[b])):
                image = super()._image(index, plan.encoded[b])
                if image is None or not self._is_of(index, image, self._images.sizes[index]):
                    return False
                self._images.add(index, image)
                self._pixels.drop(index)
        return True

    def _crops(self, coming: Coming) -> dict[str, torch.Tensor]:
        if self._images is None:
            return super()._crops(coming)
        return self._cut_there(self._images, self._images.pixels, coming.plan, coming.plan.ids)
