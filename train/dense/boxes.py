"""Samples of detection: an image with its objects, resized by its short side and flipped, as MMDetection's recipes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ...errors import UserError
from ...models.algorithms.detector import Detector
from ...pipelines.sources.subset import Subset
from .coco import decoded
from .image import fitted, read_image, tensor


class Annotated(Subset):
    """The images of a source that have an object to learn from."""

    def __init__(self, source: Any) -> None:
        super().__init__(source, [index for index in range(len(source)) if source.countable(index).any()])
        if not self.ids:
            raise UserError(f"data.train: {source.name} has no image with an object to learn from")

    def boxes(self, index: int):
        return self.source.boxes(self.ids[index])

    def countable(self, index: int) -> np.ndarray:
        return self.source.countable(self.ids[index])


@dataclass(frozen=True)
class Picture:
    """(source, index, draws) -> a sample. With draws: {"image" (3, h, w) float32, "object": what `Detector` takes},
    at a random size, perhaps flipped. Without: {"image", "size" (h, w), "original" (H, W)} at the size for tests."""

    config: Detector.Config

    def __call__(self, source: Any, index: int, draws: list[float] | None) -> dict:
        image, config = read_image(source, index), self.config
        width, height = image.size
        short = config.test_short if draws is None else config.short[int(draws[0] * len(config.short))]
        size = fitted(width, height, config.long, short)
        image = image.resize(size, Image.Resampling.BILINEAR)
        if draws is None:
            pixels = tensor(image, config.mean, config.std)
            return {"image": pixels, "size": size[::-1], "original": (height, width)}
        flip, found, kept = draws[1] < 0.5, source.boxes(index), source.countable(index)
        boxes = resized(found.boxes[kept].clip(0, (width, height) * 2), (width, height), size)
        if flip:
            image = ImageOps.mirror(image)
            boxes[:, [0, 2]] = size[0] - boxes[:, [2, 0]]
        one = {"size": size[::-1], "boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(found.labels[kept])}
        if config.masks:
            segments = [found.segments[at] for at in np.flatnonzero(kept)]
            one["masks"] = torch.from_numpy(masks_of(segments, (width, height), size, flip))
        return {"image": tensor(image, config.mean, config.std), "object": one}


def resized(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of an image of (width, height) `old` in the same image at the size `new`."""
    return boxes * np.float32([new[0] / old[0], new[1] / old[1]] * 2)


def masks_of(segments: list, old: tuple[int, int], new: tuple[int, int], flip: bool) -> np.ndarray:
    """(N, h, w) uint8 of COCO's polygons or run lengths, resized by the nearest pixel, flipped."""
    masks = []
    for segment in segments:
        mask = Image.fromarray(decoded(segment, *old)).resize(new, Image.Resampling.NEAREST)
        masks.append(np.asarray(ImageOps.mirror(mask) if flip else mask))
    return np.stack(masks)


def padded(images: list[torch.Tensor], multiple: int) -> torch.Tensor:
    """(B, 3, H, W): images of several sizes in the upper left corner of the smallest multiples that hold all."""
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    for own, image in zip(batch, images):
        own[:, : image.shape[1], : image.shape[2]] = image
    return batch


def collate(samples: list[dict], multiple: int) -> dict:
    images = padded([sample["image"] for sample in samples], multiple)
    return {"views": {"image": images[None]}, "objects": [sample["object"] for sample in samples]}


def collate_for(detector: Detector) -> partial:
    return partial(collate, multiple=multiple_of(detector))


def multiple_of(detector: Detector) -> int:
    """What the sides of padded images are multiples of."""
    return max(32, detector.maps.multiple)
