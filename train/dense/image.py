"""What happens to pixels on the way to a detector or segmenter. Pillow resizes and changes colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...pipelines.images.decode import decode


def read_image(source: Any, index: int) -> Image.Image:
    """Upright RGB. Raises `OSError` or `DecodeError`."""
    return Image.fromarray(decode(source.read(index)))


def fitted(width: int, height: int, long: int, short: int) -> tuple[int, int]:
    """(width, height) at the largest scale at which the long side is at most `long` and the short one `short`."""
    scale = min(long / max(width, height), short / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(3, H, W) float32, normalised."""
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def distorted(image: Image.Image, draws: Sequence[float]) -> Image.Image:
    """Photometric distortion of SSD (arXiv 1512.02325) as in MMSegmentation: each part with probability 1/2, brightness
    by up to 32 levels, contrast and saturation by 0.5 to 1.5, hue by up to 18 degrees of 180; contrast comes before or
    after colour. Takes nine draws in [0, 1)."""
    bright, by, first, contrast, factor, saturate, amount, turn, angle = draws[:9]
    levels = np.arange(256, dtype=np.float64)
    if bright < 0.5:
        image = _mapped(image, levels + 64 * by - 32)
    contrasted = levels * (0.5 + factor)
    if contrast < 0.5 and first < 0.5:
        image = _mapped(image, contrasted)
    if saturate < 0.5 or turn < 0.5:
        hue, saturation, value = image.convert("HSV").split()
        if saturate < 0.5:
            saturation = _mapped(saturation, levels * (0.5 + amount))
        if turn < 0.5:
            hue = _mapped(hue, np.mod(levels + (angle - 0.5) * 0.2 * 256, 256))
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if contrast < 0.5 and first >= 0.5:
        image = _mapped(image, contrasted)
    return image


def _mapped(image: Image.Image, table: np.ndarray) -> Image.Image:
    return image.point(np.clip(table, 0, 255).astype(np.uint8).tolist() * len(image.getbands()))
