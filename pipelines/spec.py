"""The contracts between storage, loaders and algorithms. A leaf: torch and the standard library.

An algorithm *returns* an `InputSpec`; a loader reads a `ByteSource` in a given order and yields `Batch`es that satisfy
it. Between the two, random draws are data: `ViewParams` says exactly what was done to every sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from ..outside import called
from .mask_spec import (  # noqa: F401 (they are contracts, too)
    BlockMask,
    CellMask,
    CropMask,
    InverseBlockMask,
    Mask,
    MaskSpec,
    Place,
    PublishedBlocksMask,
    RandomMask,
    SharedMask,
    TargetBlocksMask,
    VariedMask,
    WeightedMask,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH_JITTER = 21  # pixels by which a patch of a 3x3 grid is smaller than its cell


@dataclass(frozen=True)
class RandAugment:
    """`operations` of the fifteen of "timm_increasing", drawn with replacement, each done with probability `chance`.

    Levels are normal around `level` with standard deviation `spread`, cut to [0, 10]: timm's variant of arXiv
    1909.13719.
    """

    operations: int = 2
    level: float = 9.0
    spread: float = 0.5
    chance: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)  # RGB of what a rotation, shear or translation uncovers

    def __post_init__(self) -> None:
        if self.operations < 1 or not 0 <= self.chance <= 1:
            raise ValueError("operations, chance: needs one operation or more, and a probability in [0, 1]")
        if not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"fill: levels lie in 0 to 255, not {', '.join(map(str, self.fill))}")
        if not 0 <= self.level <= 10 or self.spread < 0:
            raise ValueError(
                f"level, spread: a level lies in [0, 10], a spread is not negative: {self.level}, {self.spread}"
            )


@dataclass(frozen=True)
class RandomErasing:
    """With probability `chance` a rectangle of the finished view becomes normal noise (arXiv 1708.04896).

    Area uniform and shape log-uniform, drawn once, sides cut to the view's; the noise is N(0, 1) per pixel and channel.
    """

    chance: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)  # share of the view
    ratio: tuple[float, float] = (0.3, 10 / 3)  # height / width

    def __post_init__(self) -> None:
        if (
            not 0 <= self.chance <= 1
            or not 0 < self.area[0] <= self.area[1] <= 1
            or not 0 < self.ratio[0] <= self.ratio[1]
        ):
            raise ValueError("chance, area, ratio: shares of at most 1, and 0 < low <= high")


@dataclass(frozen=True)
class Operation:
    """A step of one's own in a view, by the dotted name of a function ``(pixels, uniform, **options) -> pixels``.

    pixels: (N, S, S, 3) uint8 on any device, not to be overwritten; what comes back has the same shape and dtype.
    ``uniform(count)`` gives (N, count) float64 in [0, 1) there, functions of (seed, epoch, id, view) alone and new ones
    at every call: a function that draws nothing else keeps runs repeatable and exactly resumable.
    """

    name: str
    chance: float = 1.0  # a sample that is not drawn keeps its pixels
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance: a probability lies in [0, 1], not {self.chance}")
        called(self.name, ("pixels", "uniform"), self.options)


@dataclass(frozen=True)
class ViewSpec:
    """How one kind of view is made from a decoded image; `count` of them per sample.

    Order of operations: crop, resize, flip, rotation, RandAugment, `operations` of one's own, colour jitter (its four
    parts in a random order per sample), grayscale (before the jitter with `gray_first`), blur, solarise, normalise,
    channel drop, erasing, parts. Strengths and probabilities of 0 switch an operation off. Images have as many channels
    as `mean` has values; which operations these allow, `views.finish.deep_problem` says.

    Raises `ValueError` for values that no image could satisfy.
    """

    name: str = "image"  # key in Batch.views
    count: int = 1
    size: int = 224  # side of the square output in pixels
    # other sides in other steps: a moment of the run ("0", "60%", "30 epochs") -> the sides of which each step from
    # then on draws one. `size` is then the largest of the last moment: what networks are built and evaluated for
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    draws: str | None = None  # take the random draws of the view of that name: the same crop at another size
    # random: a random resized crop. center: the middle square, its side `center_fraction` of the short one.
    # window: the image resized to `resize`, then a `size` window at a random place of it and its padding; an image
    # too small for one is enlarged until it fits.
    crop: Literal["random", "center", "window"] = "random"
    center_fraction: float = 0.875
    scale: tuple[float, float] = (0.2, 1.0)  # area of a random crop as a fraction of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a random crop
    resize: int | None = None  # pixels of a window's image: of its shorter side, of both with `squash`; None: as it is
    squash: bool = False
    padding: int = 0  # pixels added on every side before a window is taken
    padding_mode: Literal["reflect", "edge", "symmetric", "constant"] = "reflect"  # constant: black
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True  # as in Pillow; False: as in OpenCV, which reads 2 (4) taps a side however much it shrinks
    flip: float = 0.5  # probability of a horizontal flip
    rotate: float = 0.0  # angle ~ U(-r, r) in degrees, nearest neighbour, black corners
    randaugment: RandAugment | None = None
    operations: tuple[Operation, ...] = ()
    jitter: float = 0.0  # probability of the colour jitter as a whole
    brightness: float = 0.0  # factor ~ U(max(0, 1 - s), 1 + s); likewise contrast and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift ~ U(-s, s) in turns of the colour circle, s <= 0.5
    gray: float = 0.0
    gray_weights: Literal["luma", "mean"] = "luma"  # ITU-R 601, or a third each
    gray_first: bool = False
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels of the output
    solarize: float = 0.0  # probability of inverting values >= 128
    mean: tuple[float, ...] = IMAGENET_MEAN  # of values in [0, 1], one for each channel
    std: tuple[float, ...] = IMAGENET_STD
    channel_drop: float = 0.0  # probability with which each channel becomes its mean; one always stays
    erasing: RandomErasing | None = None
    # rotations: 4 copies of each view, turned clockwise by 0, 90, 180, 270 degrees.
    # patches: 9 squares out of a 3x3 grid, the centre first, then column by column; see `draw.patch_boxes`.
    parts: Literal["rotations", "patches"] | None = None

    def __post_init__(self) -> None:
        for key in ("flip", "jitter", "gray", "blur", "solarize", "channel_drop"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: a probability lies in [0, 1], not {getattr(self, key)}")
        for key in ("brightness", "contrast", "saturation", "rotate", "padding"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: is not negative, {getattr(self, key)} is")
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
        if self.sizes and not all(sides and min(sides) > 0 for sides in self.sizes.values()):
            raise ValueError(f"sizes: each moment needs sides in pixels, got {self.sizes}")
        if self.sizes and (last := max(list(self.sizes.values())[-1])) != self.size:
            raise ValueError(f"size: {self.size}, but `sizes` ends with {last}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"std: one for each channel, as mean: {len(self.std)} for {len(self.mean)} means")
        if min(self.std) <= 0:
            raise ValueError(f"std: must be positive, not {self.std}")
        if self.resize is not None and self.resize + 2 * self.padding < self.size:
            raise ValueError(
                f"resize: {self.resize} px with {self.padding} of padding is less than a window of {self.size}"
            )
        if self.squash and self.resize is None:
            raise ValueError("squash: needs `resize`, the side of the square")
        if not self.antialias and self.interpolation == "lanczos":
            raise ValueError("antialias: lanczos is defined with antialiasing alone")
        if self.parts == "patches" and self.size < 3 * (PATCH_JITTER + 1):
            raise ValueError(f"size: parts: patches needs at least {3 * (PATCH_JITTER + 1)} px, not {self.size}")

    @property
    def channels(self) -> int:
        """Of the images, and of the views."""
        return len(self.mean)

    @property
    def copies(self) -> int:
        """How many tensors of a sample `Batch.views` has under this name: `count`, times the parts of each."""
        return self.count * {None: 1, "rotations": 4, "patches": 9}[self.parts]

    @property
    def side(self) -> int:
        """The side in pixels of what `Batch.views` has under this name: `size`, or that of a patch."""
        return self.size // 3 - PATCH_JITTER if self.parts == "patches" else self.size


@dataclass
class ViewParams:
    """What was drawn for one `ViewSpec` and one batch. Every tensor is (count, B, ...) on the CPU.

    The same parameters give the same view in every loader, whenever and wherever they are applied.
    """

    crop: torch.Tensor  # (count, B, 4) int32: left, top, width, height in pixels of the upright image
    resized: torch.Tensor  # (count, B, 2) int32: width, height of the crop after resizing; (size, size) but for windows
    offset: torch.Tensor  # (count, B, 2) int32: left, top of a window in that, negative in the padding; else 0
    flip: torch.Tensor  # (count, B) bool
    angle: torch.Tensor  # (count, B) float32: degrees clockwise
    jitter: torch.Tensor  # (count, B, 4) float32: factors of brightness, contrast, saturation, and the hue shift
    order: torch.Tensor  # (count, B, 4) int8: which of the four comes 1st..4th; all -1 where there is no jitter
    gray: torch.Tensor  # (count, B) bool
    sigma: torch.Tensor  # (count, B) float32: standard deviation of the blur, 0 for none
    solarize: torch.Tensor  # (count, B) bool
    policy: torch.Tensor | None = None  # (count, B, operations, 2) float32: RandAugment's (-1: none) and its magnitude
    erased: torch.Tensor | None = None  # (count, B, 4) int32: left, top, width, height; width 0 for none
    patches: torch.Tensor | None = None  # (count, B, 9, 2) int32: left, top of each of the 9 squares in the view
    dropped: torch.Tensor | None = None  # (count, B, C) bool: channels that are their mean everywhere

    def select(self, samples: torch.Tensor | list[int]) -> ViewParams:
        """The parameters of some samples of the batch, in the given order."""
        drawn = {f.name: getattr(self, f.name) for f in fields(self)}
        return ViewParams(**{name: None if value is None else value[:, samples] for name, value in drawn.items()})


@dataclass(frozen=True)
class InputSpec:
    """Everything an algorithm wants to see of a sample."""

    views: tuple[ViewSpec, ...]
    mask: MaskSpec | None = None

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"views: need one or more distinct names, got {names}")
        for view in self.views:
            if view.draws is not None and view.draws not in names:
                raise ValueError(f"views: {view.name} takes the draws of {view.draws!r}, which is none of {names}")

    @property
    def kinds(self) -> tuple[InputSpec, ...]:
        """All that may be wanted of a batch, in one step or another."""
        return (self,)

    def at(self, step: int) -> InputSpec:
        """What is wanted of the batch of a step."""
        return self


@dataclass(frozen=True)
class ChangingInputs(InputSpec):
    """Views of other sizes, fewer views, and their masks, in other steps. Its own are those that networks are built
    for."""

    several: tuple[InputSpec, ...] = ()  # of these views, or some of them
    which: torch.Tensor | None = field(default=None, compare=False)  # (steps,) uint8: the number of each step's

    @property
    def kinds(self) -> tuple[InputSpec, ...]:
        return self.several

    def at(self, step: int) -> InputSpec:
        """What is wanted of the batch of a step; behind the last one as in that."""
        return self.several[int(self.which[min(step, len(self.which) - 1)])]


@dataclass
class Batch:
    """One rank's share of one global batch, on the device."""

    # name -> (copies, B, C, side, side), channels-last, normalised; of each of `count` views its parts in turn
    views: dict[str, torch.Tensor]
    ids: torch.Tensor  # (B,) int64 on the CPU: which samples of the source
    # (B,) int64 on the device; None where the source has no labels. Of segmentation (B, H, W): the class of each pixel
    labels: torch.Tensor | None
    mask: Mask | None
    step: int  # the global step this batch belongs to
    epoch: int
    objects: list[dict[str, torch.Tensor]] | None = None  # of detection, for each sample: see train/dense/boxes.py
    origin: torch.Tensor | None = None  # (B,) int64 on the CPU, of several sets: the number of each sample's
    passes: torch.Tensor | None = None  # (B,) int64 on the CPU, of several sets: which time each is read; else `epoch`


@runtime_checkable
class ByteSource(Protocol):
    """Where encoded images come from: a folder, a set of tars. All the same to a loader.

    It may have `notes`, sentences on what it holds and does not read, which are told when it is opened. A source of
    several large files also has ``neighbours(index) -> (first, last)``, the samples [first, last) of one
    file, and ``place(index) -> (shard, offset)``, the name of that file and the position in it in bytes. Where
    `decoded` is true, `read` gives pixels, which is for the memory loader alone.
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
    # of several sets, for each: what of `wait_seconds` was for its images, and how many of them are bad
    set_waits: list[float] = field(default_factory=list)
    set_bad: list[int] = field(default_factory=list)


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
