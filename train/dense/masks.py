"""Samples of segmentation: an image and its mask of classes, as MMSegmentation's FCN recipes prepare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ...errors import UserError
from ...models.algorithms.segmenter import IGNORED, Segmenter
from .image import distorted, fitted, read_image, tensor

_TRIES = 10  # crops until one is not mostly of one class


@dataclass(frozen=True)
class Scene:
    """(source, index, draws) -> a sample. With draws: {"image" (3, c, c) float32, "mask" (c, c) uint8}, resized by a
    random ratio, cropped, flipped, distorted in colour, and padded with 0 and 255. Without: {"image" (3, h, w), "mask"
    (H, W)}, resized, and the mask as it was."""

    config: Segmenter.Config

    def __call__(self, source: Any, index: int, draws: list[float] | None) -> dict[str, torch.Tensor]:
        image, mask = read_image(source, index), Image.fromarray(source.target(index))
        if image.size != mask.size:
            raise UserError(f"{source.name}: {source.key(index)} is {image.size} px, but its mask {mask.size}")
        config, (long, short) = self.config, self.config.scale
        if draws is None:
            image = image.resize(fitted(*image.size, long, short), Image.Resampling.BILINEAR)
            return {"image": tensor(image, config.mean, config.std), "mask": torch.from_numpy(np.array(mask))}
        least, most = config.ratio
        ratio = least + (most - least) * draws[0]
        size = fitted(*image.size, int(long * ratio + 0.5), int(short * ratio + 0.5))
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        box = self.crop_box(np.asarray(mask), draws[20:])
        image, mask = image.crop(box), mask.crop(box)
        if draws[1] < 0.5:
            image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        image = tensor(distorted(image, draws[2:]), config.mean, config.std)
        padding = (0, config.crop - image.shape[2], 0, config.crop - image.shape[1])
        mask = torch.from_numpy(np.array(mask))
        return {
            "image": torch.nn.functional.pad(image, padding),
            "mask": torch.nn.functional.pad(mask, padding, value=IGNORED),
        }

    def crop_box(self, mask: np.ndarray, draws: list[float]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom: the first of ten random crops in which no class has too large a share, or the last.

        Pixels that do not count are nobody's; a crop with one class alone is refused.
        """
        (height, width), side = mask.shape, self.config.crop
        for attempt in range(_TRIES):
            left = int(draws[2 * attempt] * (max(0, width - side) + 1))
            top = int(draws[2 * attempt + 1] * (max(0, height - side) + 1))
            counts = np.bincount(mask[top : top + side, left : left + side].ravel(), minlength=256)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < self.config.largest_share * counts.sum():
                break
        return left, top, min(left + side, width), min(top + side, height)


def collate(samples: list[dict[str, torch.Tensor]]) -> dict:
    images = torch.stack([sample["image"] for sample in samples])
    return {"views": {"image": images[None]}, "labels": torch.stack([sample["mask"] for sample in samples])}
