"""The contracts between storage, loaders and algorithms. A leaf: it imports torch and the standard library alone.

An algorithm *returns* an `InputSpec`; a loader reads a `ByteSource` in a given order and yields `Batch`es that satisfy
it. Between the two, random draws are data: `ViewParams` says exactly what was done to every sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, runtime_checkable

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViewSpec:
    """How one kind of view is made from a decoded RGB image; `count` of them per sample.

    Order of operations: crop, resize, flip, colour jitter (its four parts in a random order per sample), grayscale,
    blur, solarise, normalise. Strengths and probabilities of 0 switch an operation off.

    Raises `ValueError` for values that no image could satisfy.
    """

    name: str = "image"  # key in Batch.views
    count: int = 1
    size: int = 224  # side of the square output in pixels
    crop: Literal["random", "center"] = (
        "random"  # center: the middle square, its side `center_fraction` of the short one
    )
    center_fraction: float = 0.875
    scale: tuple[float, float] = (0.2, 1.0)  # area of a random crop as a fraction of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a random crop
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # antialiased, as in Pillow
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.0  # probability of the colour jitter as a whole
    brightness: float = 0.0  # factor ~ U(max(0, 1 - s), 1 + s); likewise contrast and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift ~ U(-s, s) in turns of the colour circle, s <= 0.5
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels of the output
    solarize: float = 0.0  # probability of inverting values >= 128
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of values in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for key in ("flip", "jitter", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: a probability lies in [0, 1], not {getattr(self, key)}")
        for key in ("brightness", "contrast", "saturation"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: a strength is not negative, {getattr(self, key)} is")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue: a shift lies in [0, 0.5] turns, not {self.hue}")
        for key in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key}: needs 0 < low <= high, not {low}, {high}")
        if self.scale[1] > 1 or not 0 < self.center_fraction <= 1:
            raise ValueError("scale, center_fraction: a crop cannot be larger than the image")
        if self.size < 1 or self.count < 1:
            raise ValueError(f"size, count: must be at least 1, not {self.size}, {self.count}")
        if min(self.std) <= 0:
            raise ValueError(f"std: must be positive, not {self.std}")


@dataclass
class ViewParams:
    """What was drawn for one `ViewSpec` and one batch. Every tensor is (count, B, ...) on the CPU.

    The same parameters give the same view in every loader, whenever and wherever they are applied.
    """

    crop: torch.Tensor  # (count, B, 4) int32: left, top, width, height in pixels of the upright image
    flip: torch.Tensor  # (count, B) bool
    jitter: torch.Tensor  # (count, B, 4) float32: factors of brightness, contrast, saturation, and the hue shift
    order: torch.Tensor  # (count, B, 4) int8: which of the four comes 1st..4th; all -1 where there is no jitter
    gray: torch.Tensor  # (count, B) bool
    sigma: torch.Tensor  # (count, B) float32: standard deviation of the blur, 0 for none
    solarize: torch.Tensor  # (count, B) bool

    def select(self, samples: torch.Tensor | list[int]) -> ViewParams:
        """The parameters of some samples of the batch, in the given order."""
        return ViewParams(**{f.name: getattr(self, f.name)[:, samples] for f in fields(self)})


@dataclass(frozen=True)
class MaskSpec:
    """Which patches of a `grid` (rows, columns) are hidden from the encoder.

    `random`: every sample keeps ``int(patches * (1 - ratio))`` patches, chosen uniformly (MAE, arXiv 2111.06377).
    """

    kind: Literal["random"] = "random"
    grid: tuple[int, int] = (14, 14)
    ratio: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio: the hidden share lies in [0, 1), not {self.ratio}")
        if self.kept < 1:
            raise ValueError(f"ratio: {self.ratio} of a {self.grid[0]}x{self.grid[1]} grid leaves no visible patch")

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def kept(self) -> int:
        return int(self.patches * (1 - self.ratio))


@dataclass(frozen=True)
class InputSpec:
    """Everything an algorithm wants to see of a sample."""

    views: tuple[ViewSpec, ...]
    mask: MaskSpec | None = None

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"views: need one or more distinct names, got {names}")


@dataclass
class Mask:
    """Hidden patches of a batch, on the device. Every sample hides the same number of them."""

    hidden: torch.Tensor  # (B, L) bool
    keep: torch.Tensor  # (B, K) int64: indices of the visible patches, in the order the encoder sees them
    restore: torch.Tensor  # (B, L) int64: cat(visible, hidden)[restore] is raster order


@dataclass
class Batch:
    """One rank's share of one global batch, on the device."""

    views: dict[str, torch.Tensor]  # name -> (count, B, 3, size, size), channels-last, normalised
    ids: torch.Tensor  # (B,) int64 on the CPU: which samples of the source
    labels: torch.Tensor | None  # (B,) int64 on the device; None where the source has no labels
    mask: Mask | None
    step: int  # the global step this batch belongs to
    epoch: int


@runtime_checkable
class ByteSource(Protocol):
    """Where encoded images come from: a folder, a set of tars. All the same to a loader.

    A source of several large files also has ``neighbours(index) -> (first, last)``, the samples [first, last) of one
    file, and ``place(index) -> (shard, offset)``, the name of that file and the position in it in bytes.
    """

    name: str  # what messages call it, usually its path
    classes: list[str] | None  # None: no labels

    def __len__(self) -> int: ...

    def read(self, index: int):
        """Encoded bytes as a 1-D uint8 numpy array (a view of a memory map where possible)."""

    def label(self, index: int) -> int:
        """Class index, or -1 without labels."""

    def key(self, index: int) -> str:
        """What a person calls this sample: the path in the folder, ``shard.tar/member``."""

    def size(self, index: int) -> tuple[int, int] | None:
        """(height, width) of the upright image where the index knows it, else None."""


@dataclass
class LoaderStats:
    """Counts since the loader was made."""

    images: int = 0
    bad_images: int = 0  # known to be undecodable, each replaced by another one
    wait_seconds: float = 0.0  # how long the consumer stood in `next`
    replaced: list[str] = field(default_factory=list)  # "key: reason", the first hundred


class Loader(Protocol):
    """Endless iterator of `Batch`; its state is a handful of integers."""

    steps_per_epoch: int

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch: valid for any number of ranks."""

    def load_state_dict(self, state: dict[str, int]) -> None: ...

    def stats(self) -> LoaderStats: ...

    def close(self) -> None:
        """Ends every thread and frees every buffer. Safe to call twice."""
