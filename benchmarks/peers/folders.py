"""Libraries that are fed by PyTorch's DataLoader over a folder: a transform per image in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from headrace.kernels.augment import blur_taps
from headrace.pipelines.spec import ViewSpec

_MODE = {"bilinear": v1.InterpolationMode.BILINEAR, "bicubic": v1.InterpolationMode.BICUBIC}


class Views:
    """An image -> all its views, by one transform a `ViewSpec`."""

    def __init__(self, views: tuple[ViewSpec, ...], make: Callable, prepare: Callable = lambda image: image) -> None:
        self.transforms = [(view.count, make(view)) for view in views]
        self.prepare = prepare

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        image = self.prepare(image)
        return [transform(image) for count, transform in self.transforms for _ in range(count)]


def loader(data, transform: Callable, workers: int, batch: int, read: Callable | None = None) -> Iterator:
    torch.set_num_threads(1)
    folder = torchvision.datasets.ImageFolder(data, transform, **({"loader": read} if read else {}))
    options = dict(batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    batches = torch.utils.data.DataLoader(folder, **options)
    while True:
        for views, _ in batches:
            yield views


def _shared(view: ViewSpec, library) -> list:
    """What torchvision's two generations call alike, after the crop."""
    factors = (view.brightness, view.contrast, view.saturation, view.hue)
    steps = [
        (view.jitter, library.RandomApply([library.ColorJitter(*factors)], p=view.jitter)),
        (view.gray, library.RandomGrayscale(p=view.gray)),
        (
            view.blur,
            library.RandomApply([library.GaussianBlur(blur_taps(view.blur_sigma[1]), view.blur_sigma)], view.blur),
        ),
        (view.solarize, library.RandomSolarize(128, p=view.solarize)),
    ]
    return [step for chance, step in steps if chance]


def _crop(view: ViewSpec, library) -> list:
    mode = _MODE[view.interpolation]
    if view.crop == "center":
        return [library.Resize(round(view.size / view.center_fraction), mode), library.CenterCrop(view.size)]
    crop = library.RandomResizedCrop(view.size, view.scale, view.ratio, mode)
    return [crop, library.RandomHorizontalFlip(view.flip)]


def torchvision_pil(data, views, workers: int, batch: int) -> Iterator:
    def make(view: ViewSpec):
        return v1.Compose([*_crop(view, v1), *_shared(view, v1), v1.ToTensor(), v1.Normalize(view.mean, view.std)])

    return loader(data, Views(views, make), workers, batch)


def tensors(view: ViewSpec):
    """torchvision v2's transform of byte tensors."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*_crop(view, v2), *_shared(view, v2), to_float, v2.Normalize(view.mean, view.std)])


def torchvision_v2(data, views, workers: int, batch: int) -> Iterator:
    rgb = torchvision.io.ImageReadMode.RGB
    return loader(data, Views(views, tensors), workers, batch, lambda path: torchvision.io.decode_image(path, rgb))


def timm(data, views, workers: int, batch: int) -> Iterator:
    from timm.data import create_transform

    def make(view: ViewSpec):
        common = dict(interpolation=view.interpolation, mean=view.mean, std=view.std)
        if view.crop == "center":
            return create_transform(view.size, crop_pct=view.center_fraction, **common)
        jitter = (view.brightness, view.contrast, view.saturation, view.hue) if view.jitter else 0.0
        color = dict(color_jitter=jitter, grayscale_prob=view.gray, gaussian_blur_prob=view.blur)
        return create_transform(view.size, True, scale=view.scale, ratio=view.ratio, hflip=view.flip, **color, **common)

    return loader(data, Views(views, make), workers, batch)


def lightly(data, views, workers: int, batch: int) -> Iterator:
    from lightly.transforms import GaussianBlur

    def make(view: ViewSpec):
        steps = [step for step in _shared(view, v1) if "GaussianBlur" not in repr(step)]
        if view.blur:
            steps.insert(2, GaussianBlur(prob=view.blur, sigmas=view.blur_sigma))
        return v1.Compose([*_crop(view, v1), *steps, v1.ToTensor(), v1.Normalize(view.mean, view.std)])

    return loader(data, Views(views, make), workers, batch)


def albumentations(data, views, workers: int, batch: int) -> Iterator:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    def read(path: str) -> np.ndarray:
        cv2.setNumThreads(1)
        return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)

    def make(view: ViewSpec):
        mode = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[view.interpolation]
        if view.crop == "center":
            steps = [
                A.SmallestMaxSize(round(view.size / view.center_fraction), interpolation=mode),
                A.CenterCrop(view.size, view.size),
            ]
        else:
            crop = A.RandomResizedCrop((view.size, view.size), scale=view.scale, ratio=view.ratio, interpolation=mode)
            steps = [crop, A.HorizontalFlip(p=view.flip)]
        around = [(max(0.0, 1 - s), 1 + s) for s in (view.brightness, view.contrast, view.saturation)]
        chances = [
            (view.jitter, lambda: A.ColorJitter(*around, (-view.hue, view.hue), p=view.jitter)),
            (view.gray, lambda: A.ToGray(p=view.gray)),
            (view.blur, lambda: A.GaussianBlur(blur_limit=0, sigma_limit=view.blur_sigma, p=view.blur)),
            (view.solarize, lambda: A.Solarize((0.5, 0.5), p=view.solarize)),
        ]
        steps += [step() for chance, step in chances if chance]
        composed = A.Compose([*steps, A.Normalize(view.mean, view.std), ToTensorV2()])
        return lambda image: composed(image=image)["image"]

    return loader(data, Views(views, make), workers, batch, read)


def kornia(data, views, workers: int, batch: int) -> Iterator:
    import kornia.augmentation as K

    def crops(view: ViewSpec):
        return v2.Compose([*_crop(view, v2), v2.ToDtype(torch.float32, scale=True)])

    def colors(view: ViewSpec):
        taps = blur_taps(view.blur_sigma[1])
        steps = [
            (view.jitter, K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter)),
            (view.gray, K.RandomGrayscale(p=view.gray)),
            (view.blur, K.RandomGaussianBlur((taps, taps), view.blur_sigma, p=view.blur)),
            (view.solarize, K.RandomSolarize(0.0, 0.0, p=view.solarize)),
        ]
        steps = [step for chance, step in steps if chance]
        return K.AugmentationSequential(*steps, K.Normalize(view.mean, view.std), data_keys=["input"])

    rgb = torchvision.io.ImageReadMode.RGB
    made = [colors(view) for view in views for _ in range(view.count)]
    read = lambda path: torchvision.io.decode_image(path, rgb)
    for cropped in loader(data, Views(views, crops), workers, batch, read):
        yield [color(crop) for color, crop in zip(made, cropped)]
