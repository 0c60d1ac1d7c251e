"""FFCV's own loader over a `.beton` that holds the bytes of the same JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from ffcv import transforms
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.writer import DatasetWriter

from headrace.errors import UserError
from headrace.pipelines.sharding.beton import write_beton
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ByteSource, ViewSpec
from headrace.pipelines.views.cut import decode_fast


def write(data: Path, out: Path) -> None:
    write_beton(data, out, ShardOptions())


def write_raw(data: Path, out: Path) -> None:
    """By FFCV's own writer, every image decoded."""
    source = open_source(data)
    rows = _Decoded(source)
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(out), fields, num_workers=1).from_indexed_dataset(rows)


class _Decoded:
    """(image, label) of a source, as FFCV's writer asks for them."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode_fast(self._source.read(index)), self._source.label(index)


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
