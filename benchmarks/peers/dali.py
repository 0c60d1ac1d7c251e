"""DALI's own reader and operators on CPU threads. One crop: only its region is decoded; several: all of it, once."""

from __future__ import annotations

from collections.abc import Iterator

import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from headrace.kernels.augment import blur_taps
from headrace.pipelines.spec import ViewSpec

_MODE = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def _coin(chance: float):
    """1.0 with that probability, else 0.0."""
    return fn.cast(fn.random.coin_flip(probability=chance), dtype=types.FLOAT)


def _finish(image, view: ViewSpec):
    if view.jitter:
        on = _coin(view.jitter)
        strengths = {"brightness": view.brightness, "contrast": view.contrast, "saturation": view.saturation}
        factors = {
            name: 1 + on * (fn.random.uniform(range=(max(0.0, 1 - s), 1 + s)) - 1) for name, s in strengths.items()
        }
        if view.gray:
            factors["saturation"] = factors["saturation"] * (1 - _coin(view.gray))
        hue = on * fn.random.uniform(range=(-360 * view.hue, 360 * view.hue))
        image = fn.color_twist(image, hue=hue, **factors)
    if view.blur:  # a blur of almost no width is the closest to none
        on = _coin(view.blur)
        sigma = on * fn.random.uniform(range=view.blur_sigma) + (1 - on) * 0.01
        image = fn.gaussian_blur(image, sigma=sigma, window_size=blur_taps(view.blur_sigma[1]))
    mirror = fn.random.coin_flip(probability=view.flip) if view.flip else 0
    mean, std = [255 * m for m in view.mean], [255 * s for s in view.std]
    return fn.crop_mirror_normalize(image, mean=mean, std=std, mirror=mirror, output_layout="CHW")


@pipeline_def
def _pipeline(data: str, views: tuple[ViewSpec, ...]):
    encoded, _ = fn.readers.file(file_root=data, random_shuffle=True, name="images")
    first = views[0]
    common = lambda view: dict(size=(view.size, view.size), interp_type=_MODE[view.interpolation], antialias=True)
    if len(views) == first.count == 1 and first.crop == "random":
        region = dict(random_area=first.scale, random_aspect_ratio=first.ratio)
        return _finish(fn.resize(fn.decoders.image_random_crop(encoded, **region), **common(first)), first)
    image, made = fn.decoders.image(encoded), []
    for view in views:
        for _ in range(view.count):
            if view.crop == "center":
                options = dict(resize_shorter=round(view.size / view.center_fraction), antialias=True)
                crop = fn.crop(
                    fn.resize(image, interp_type=_MODE[view.interpolation], **options), crop=(view.size,) * 2
                )
            else:
                region = dict(random_area=view.scale, random_aspect_ratio=view.ratio)
                crop = fn.random_resized_crop(image, **region, **common(view))
            made.append(_finish(crop, view))
    return tuple(made)


def dali(data, views, workers: int, batch: int) -> Iterator:
    pipeline = _pipeline(str(data), views, batch_size=batch, num_threads=workers, device_id=None, seed=1)
    names = [str(n) for n in range(sum(view.count for view in views))]
    while True:
        for (made,) in DALIGenericIterator(pipeline, names, reader_name="images"):
            yield [made[name] for name in names]
