"""What a careful hand makes of OpenCV: few passes over bytes in worker processes, normalised batch by batch.

libjpeg-turbo decodes once for all views; brightness, contrast, saturation, hue and grayscale of a view are one matrix
of three rows and four columns; the main process turns bytes into normalised floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch

from headrace.kernels.augment import blur_taps
from headrace.pipelines.spec import ViewSpec

from .folders import loader

_LUMA = np.array([0.299, 0.587, 0.114])
# hue turns in the plane of I and Q
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


def _read(path: str) -> np.ndarray:
    import simplejpeg

    cv2.setNumThreads(1)
    with open(path, "rb") as file:
        data = file.read()
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # four components, warnings
        return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)


def _crop(image: np.ndarray, view: ViewSpec, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    mode = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[view.interpolation]
    if view.crop == "center":
        side = round(view.size / view.center_fraction)
        scale = side / min(height, width)
        image = cv2.resize(
            image, (max(side, round(width * scale)), max(side, round(height * scale))), interpolation=mode
        )
        top, left = (image.shape[0] - view.size) // 2, (image.shape[1] - view.size) // 2
        return image[top : top + view.size, left : left + view.size]
    w, h = width, height
    for _ in range(10):
        area = rng.uniform(*view.scale) * height * width
        ratio = np.exp(rng.uniform(*np.log(view.ratio)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, height), min(width, height)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return cv2.resize(image[top : top + h, left : left + w], (view.size, view.size), interpolation=mode)


def _matrix(image: np.ndarray, view: ViewSpec, rng: np.random.Generator) -> np.ndarray | None:
    """(3, 4): jitter in a random order and grayscale; None where there is neither."""
    m = np.eye(3, 4)
    if rng.random() < view.jitter:
        strengths = (view.brightness, view.contrast, view.saturation)
        brightness, contrast, saturation = (rng.uniform(max(0.0, 1 - s), 1 + s) for s in strengths)
        angle = 2 * np.pi * rng.uniform(-view.hue, view.hue)
        mean = np.append(cv2.mean(image)[:3], 1.0)
        for step in rng.permutation(4):
            if step == 0:
                m *= brightness
            elif step == 1:
                level = _LUMA @ (m @ mean)
                m *= contrast
                m[:, 3] += (1 - contrast) * level
            elif step == 2:
                m = saturation * m + (1 - saturation) * (_LUMA @ m)
            elif angle:
                c, s = np.cos(angle), np.sin(angle)
                m = _RGB @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ _YIQ @ m
    if rng.random() < view.gray:
        m = np.broadcast_to(_LUMA @ m, (3, 4))
    return None if np.array_equal(m, np.eye(3, 4)) else np.ascontiguousarray(m)


class _Views:
    """An image -> all its views, bytes (size, size, 3)."""

    def __init__(self, views: tuple[ViewSpec, ...]) -> None:
        self.views, self.rng = views, None

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        self.rng = self.rng or np.random.default_rng(torch.initial_seed() % 2**32)  # in each worker another one
        return [self._view(image, view) for view in self.views for _ in range(view.count)]

    def _view(self, image: np.ndarray, view: ViewSpec) -> np.ndarray:
        rng = self.rng
        made = _crop(image, view, rng)
        if (matrix := _matrix(made, view, rng)) is not None:
            made = cv2.transform(made, matrix)
        if rng.random() < view.blur:
            taps = blur_taps(view.blur_sigma[1])
            made = cv2.GaussianBlur(made, (taps, taps), rng.uniform(*view.blur_sigma))
        if rng.random() < view.solarize:
            made = np.where(made >= 128, 255 - made, made)
        return np.ascontiguousarray(made[:, ::-1] if rng.random() < view.flip else made)


def by_hand(data, views, workers: int, batch: int) -> Iterator:
    constants = []
    for view in views:
        mean, std = torch.tensor(view.mean), torch.tensor(view.std)
        constants += [(1 / (255 * std), -mean / std)] * view.count
    for made in loader(data, _Views(views), workers, batch, _read):
        yield [
            torch.addcmul(offset, view.float(), scale).permute(0, 3, 1, 2)
            for view, (scale, offset) in zip(made, constants)
        ]
