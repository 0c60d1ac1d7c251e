"""Images behind one another in one buffer, whole or some rows of each, and crops that a device cuts out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...kernels.crop_resize import crop_resize
from ..images.planes import Planes
from ..pixels.sidecars import spans
from ..spec import ViewSpec
from ..views.cut import as_rgb
from .device import to_device


class Packed:
    """Where the images lie: `length` bytes, whole words; `offsets` (N,), or (N, 3) of planes, `widths`, `heights`, as
    `crop_resize` takes them."""

    def __init__(
        self,
        form: Literal["rgb", "yuv420"],
        sizes: Sequence[tuple[int, int]],
        rows: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """`sizes`: (height, width) of the images; `rows`: of each the first one that is taken and the one behind the
        last, or all of all. Of planes as much chroma is taken as those rows are made of."""
        self.form, self.sizes = form, sizes
        sides = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
        luma, chroma = sides.prod(1), ((sides + 1) // 2).prod(1)
        if form == "rgb":
            size, begins = 3 * luma, torch.zeros(len(sides), 1, dtype=torch.int64)
        else:
            size, begins = luma + 2 * chroma, torch.stack([torch.zeros_like(luma), luma, luma + chroma], 1)
        if rows is None:
            runs = torch.stack([torch.zeros_like(size), size], 1)[:, None]
        else:
            runs = torch.tensor(
                [spans(form, n, *side, *some) for n, side, some in zip(size.tolist(), sizes, rows)], dtype=torch.int64
            )
        first, lengths = runs[..., 0], runs[..., 1] - runs[..., 0]
        ends = lengths.flatten().cumsum(0).view(lengths.shape)
        self._runs = torch.stack([first, ends - lengths, lengths], -1)  # (N, runs, 3)
        self.length = -(-int(ends[-1, -1]) // 4) * 4
        offsets = ends - lengths - first + begins
        self.offsets = offsets[:, 0] if form == "rgb" else offsets
        self.heights, self.widths = sides.to(torch.int32).unbind(1)

    def pieces(self, number: int, image: np.ndarray | Planes) -> Iterator[tuple[int, np.ndarray]]:
        """What is taken of an image: where it lies in the buffer, and the bytes."""
        if self.form == "rgb":
            flat = np.ascontiguousarray(as_rgb(image)).reshape(-1)
        elif isinstance(image, Planes):
            flat = image.flat
        else:
            from ..views.yuv import to_planes  # numba, which loaders on GPUs can do without

            flat = to_planes(image).flat
        for first, start, length in self._runs[number].tolist():
            yield start, flat[first : first + length]

    def crops(self, pixels: Tensor, view: ViewSpec, ids: Tensor, boxes: Tensor) -> Tensor:
        """(count * B, size, size, 3) uint8 on the device of the buffer `pixels`, of the images (B,) and boxes
        (count, B, 4)."""
        ids = ids.repeat(len(boxes))
        known = [self.offsets[ids], self.widths[ids], boxes.flatten(0, 1)]
        known += [] if self.form == "rgb" else [self.heights[ids]]
        options = {"size": view.size, "interpolation": view.interpolation, "antialias": view.antialias}
        return crop_resize(pixels, *to_device(known, pixels.device), **options)
