"""What people hand over in Python, as a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ...errors import UserError
from ..sources import open_source
from ..sources.arrays import ArraySource, deep_arrays
from ..sources.dataset import DatasetSource
from ..sources.paths import PathSource
from ..spec import ByteSource
from .sets import open_plan
from .spec import MixSpec


def as_source(data, mix: MixSpec | Mapping | None = None) -> ByteSource:
    """The source that `data` of `headrace.loader`, or `data.train` of a recipe, stands for. Raises `UserError`."""
    if isinstance(data, Mapping):
        return open_plan(data, mix)
    if mix is not None and mix != MixSpec():
        raise UserError("data.mix: has no effect: data.train names one source; a plan: file has a `mix` of its own")
    if isinstance(data, (str, os.PathLike)):
        return open_source(data)
    if isinstance(data, Dataset):
        return DatasetSource(data)
    if isinstance(data, ByteSource):
        return data
    images, labels = data if isinstance(data, tuple) and len(data) == 2 and not _is_path(data[0]) else (data, None)
    if isinstance(images, np.ndarray) and images.dtype.kind == "U" and images.ndim == 1:
        images = images.tolist()
    whole = isinstance(images, (np.ndarray, torch.Tensor))
    if not whole and (not isinstance(images, Sequence) or isinstance(images, (bytes, bytearray))):
        images = ()
    if not whole and len(images) and all(map(_is_path, images)):
        return PathSource(images, labels)
    images = _array(images) if whole else [_array(image) for image in images]
    if len(images) and (deep := deep_arrays(images, labels)) is not None:
        return deep
    shapes = [images.shape[1:]] if whole else [getattr(image, "shape", ()) for image in images]
    if not len(images) or any(len(shape) != 3 or shape[2] != 3 or not all(shape) for shape in shapes):
        raise UserError(
            "data: needs a name, a source, a data set, a list of paths, or images of (H, W, 3); "
            f"got {type(data).__name__}" + (f" of {images.shape}" if whole else "")
        )
    kinds = {images.dtype} if whole else {image.dtype for image in images}
    if kinds != {np.dtype(np.uint8)}:
        raise UserError(f"data: images hold {', '.join(map(str, kinds))}; give uint8, 0 to 255")
    return ArraySource(images, labels)


def _array(image):
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image


def _is_path(thing) -> bool:
    return isinstance(thing, (str, os.PathLike))
