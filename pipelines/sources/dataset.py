"""A ``torch.utils.data.Dataset`` of encoded images or of Pillow's, as a source."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from ...errors import UserError
from .class_numbers import class_numbers


class DatasetSource:
    """The samples of `dataset`, which has a length and is asked for one index at a time.

    A sample is an image or (image, label, ...) or {"image": ..., "label": ...}. An image is encoded bytes, or Pillow's:
    those are decoded by the data set, one after another, so such a source is as slow as the data set is. Labels are the
    data set's `targets` where it has them, else those of the samples; `classes` are its own, or unnamed.

    Raises `UserError` for a data set without length or of other samples.
    """

    def __init__(self, dataset, *, name: str | None = None) -> None:
        self.dataset, self.name = dataset, name or type(dataset).__name__
        try:
            self._length = len(dataset)
        except TypeError:
            raise UserError(
                f"{self.name}: has no length, so its samples have no order that could be continued; "
                "give a data set that is asked by index"
            ) from None
        if self._length == 0:
            raise UserError(f"{self.name}: holds no sample")
        targets = getattr(dataset, "targets", None)
        try:
            self._labels = None if targets is None else class_numbers(targets, self._length, self.name, "samples")
        except UserError:  # targets that are no classes
            self._labels = None
        _, label = self._sample(0)
        if self._labels is None and label is not None:
            self._labels = np.full(self._length, -1, np.int64)  # filled as samples are read
        classes = getattr(dataset, "classes", None)
        self.classes = None if self._labels is None else [str(c) for c in classes or ()]

    def __len__(self) -> int:
        return self._length

    def _sample(self, index: int) -> tuple[np.ndarray, int | None]:
        """(encoded bytes, label or None)"""
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            image, label = sample.get("image"), sample.get("label")
        else:
            image, label = (*sample, None)[:2] if isinstance(sample, (tuple, list)) else (sample, None)
        whole = isinstance(label, (int, np.integer)) or getattr(label, "ndim", None) == 0
        return self._encoded(image, index), int(label) if whole else None

    def _encoded(self, image, index: int) -> np.ndarray:
        if isinstance(image, (bytes, bytearray, memoryview)):
            return np.frombuffer(image, np.uint8)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 1:
            return image
        if isinstance(image, Image.Image):
            buffer = io.BytesIO()  # without loss and nearly for nothing: a header, and the pixels as they are
            if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would cut at 255
                deep = image.convert("I;16") if image.mode == "I" and 0 <= image.getextrema()[1] < 1 << 16 else image
                deep.save(buffer, "TIFF")
            else:
                (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(buffer, "PPM")
            return np.frombuffer(buffer.getbuffer(), np.uint8)
        raise UserError(
            f"{self.key(index)}: is {type(image).__name__}, not the bytes of an image file or a Pillow image; "
            "leave out the data set's transform"
        )

    def read(self, index: int) -> np.ndarray:
        """Encoded bytes, 1-D uint8."""
        encoded, label = self._sample(index)
        if label is not None:
            self._labels[index] = label
        return encoded

    def label(self, index: int) -> int:
        """-1 for a sample that has not been read yet where only samples know."""
        return -1 if self._labels is None else int(self._labels[index])

    def key(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def size(self, index: int) -> None:
        """Unknown before it is read."""
