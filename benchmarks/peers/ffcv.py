"""FFCV's own loader over a `.beton` that holds the bytes of the same JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from ffcv import transforms
from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec

from headrace.errors import UserError
from headrace.pipelines.sharding.beton import write_beton
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.spec import ViewSpec


def write(data: Path, out: Path) -> None:
    write_beton(data, out, ShardOptions())


def _pipeline(view: ViewSpec) -> PipelineSpec:
    shape = (view.size, view.size)
    if view.crop == "center":
        decoder = CenterCropRGBImageDecoder(shape, ratio=view.center_fraction)
    else:
        decoder = RandomResizedCropRGBImageDecoder(shape, view.scale, view.ratio)
    steps = [transforms.RandomHorizontalFlip(view.flip)] if view.flip else []
    if view.jitter:
        steps.append(transforms.RandomBrightness(view.brightness, view.jitter))
        steps.append(transforms.RandomContrast(view.contrast, view.jitter))
        steps.append(transforms.RandomSaturation(view.saturation, view.jitter))
    mean, std = (255 * np.array(values) for values in (view.mean, view.std))
    steps += [transforms.NormalizeImage(mean, std, np.float32), transforms.ToTensor(), transforms.ToTorchImage()]
    return PipelineSpec("image", decoder=decoder, transforms=steps)


@cache  # it compiles its pipelines anew for every loader
def _loader(beton: Path, views: tuple[ViewSpec, ...], workers: int, batch: int) -> Loader:
    made = [_pipeline(view) for view in views for _ in range(view.count)]
    if len(made) > 2:
        raise UserError(f"each view is compiled by itself, half a minute of a core; not done for {len(made)}")
    pipelines = {"label": None, **{"image" if n == 0 else f"image{n}": spec for n, spec in enumerate(made)}}
    order = OrderOption.RANDOM
    return Loader(str(beton), batch, workers, os_cache=True, order=order, drop_last=True, pipelines=pipelines)


def ffcv(beton: Path, views, workers: int, batch: int) -> Iterator:
    loader = _loader(beton, views, workers, batch)
    while True:
        for tensors in loader:
            yield list(tensors)
