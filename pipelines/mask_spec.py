"""Which patches of an image an algorithm does not see: one class for each rule. Part of the contracts of `spec.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch


@dataclass(frozen=True)
class MaskSpec:
    """Which patches of a `grid` (rows, columns) are hidden from the encoder. A subclass says by which rule.

    A rule of one's own gives `scores` and `hidden`, a number.
    """

    grid: tuple[int, int] = (14, 14)

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def hidden(self) -> int | None:
        """How many patches every sample hides; None where that differs from sample to sample or batch to batch."""
        raise NotImplementedError

    def scores(self, uniform: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """(B, patches) numbers, in raster order: of each sample's the `hidden` highest are those of hidden patches.

        ``uniform(count)`` gives (B, count) float64 in [0, 1) on the device, functions of (seed, epoch, id) alone and
        new ones at every call.
        """
        raise NotImplementedError


def _share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{key}: the hidden share lies in [0, 1), not {value}")


@dataclass(frozen=True)
class RandomMask(MaskSpec):
    """Every sample keeps ``int(patches * (1 - ratio))`` patches, chosen uniformly (MAE, arXiv 2111.06377)."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        _share("ratio", self.ratio)
        if self.hidden == self.patches:
            raise ValueError(f"ratio: {self.ratio} of a {self.grid[0]}x{self.grid[1]} grid leaves no visible patch")

    @property
    def hidden(self) -> int:
        return self.patches - int(self.patches * (1 - self.ratio))


@dataclass(frozen=True)
class CellMask(MaskSpec):
    """``ceil(cells * ratio)`` square cells of `cell` x `cell` patches, chosen uniformly (SimMIM, arXiv 2111.09886)."""

    grid: tuple[int, int] = (48, 48)
    cell: int = 8
    ratio: float = 0.6

    def __post_init__(self) -> None:
        _share("ratio", self.ratio)
        if self.grid[0] % self.cell or self.grid[1] % self.cell:
            raise ValueError(f"cell: {self.cell} does not divide a {self.grid[0]}x{self.grid[1]} grid")
        if self.hidden == self.patches:
            raise ValueError(f"ratio: {self.ratio} of {self.patches // self.cell**2} cells leaves none visible")

    @property
    def hidden(self) -> int:
        cells = self.patches // self.cell**2
        return math.ceil(cells * self.ratio) * self.cell**2


@dataclass(frozen=True)
class BlockMask(MaskSpec):
    """Rectangles until exactly `count` patches are hidden (BEiT, arXiv 2106.08254, algorithm 1)."""

    count: int = 75
    min_block: int = 16
    max_block: int | None = None  # patches of one rectangle; None: `count`
    min_aspect: float = 0.3  # the shape of a rectangle is log-uniform in [min_aspect, 1 / min_aspect]

    def __post_init__(self) -> None:
        if not 0 < self.count < self.patches:
            raise ValueError(f"count: needs 0 < count < {self.patches} patches, not {self.count}")
        if self.min_block < 1 or (self.max_block is not None and self.max_block < 1):
            raise ValueError(f"min_block, max_block: must be at least 1, not {self.min_block}, {self.max_block}")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect: lies in (0, 1], not {self.min_aspect}")

    @property
    def hidden(self) -> int:
        return self.count


@dataclass(frozen=True)
class SharedMask(MaskSpec):
    """One mask of ``int(patches * (ratio + u))``, u ~ U(0, spread), for the whole batch (MixMIM, arXiv 2205.13137).

    Every rank has its own, drawn from the id of its batch's first sample; `per_sample` draws one for each sample. The
    grid is that of the last stage; earlier ones repeat its cells.
    """

    grid: tuple[int, int] = (7, 7)
    ratio: float = 0.5
    spread: float = 0.0
    per_sample: bool = False

    def __post_init__(self) -> None:
        _share("ratio, spread", self.ratio + self.spread)

    @property
    def hidden(self) -> int | None:
        return None if self.spread else int(self.patches * self.ratio)


@dataclass(frozen=True)
class WeightedMask(RandomMask):
    """`RandomMask`'s counts; which patches, the algorithm says with `masks.weighted_mask` (MILAN, arXiv 2208.06049)."""


@dataclass(frozen=True)
class TargetBlocksMask(MaskSpec):
    """`targets` rectangles to be predicted, and a context without them (I-JEPA, arXiv 2301.08243).

    The shares are of the grid. One shape for all rectangles of a batch would change from batch to batch; here the
    shape is fixed by `target_scale` and `target_ratio` (height / width), and the context is cut to `kept` patches.
    """

    targets: int = 4
    target_scale: float = 0.175
    target_ratio: float = 1.0
    context_scale: float = 0.925
    kept: int = 48  # patches of the context, chosen uniformly of those that are left

    def __post_init__(self) -> None:
        for key in ("target_scale", "context_scale"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"{key}: a share lies in (0, 1], not {getattr(self, key)}")
        if self.targets < 1 or self.target_ratio <= 0:
            raise ValueError(f"targets, target_ratio: must be positive, not {self.targets}, {self.target_ratio}")
        rows, columns = self.target_shape
        left = self.patches - self.targets * rows * columns  # where no two of them overlap
        if not 0 < self.kept <= left:
            raise ValueError(
                f"kept: {self.targets} targets of {rows}x{columns} leave {left} patches, kept is {self.kept}"
            )

    @property
    def target_shape(self) -> tuple[int, int]:
        """Rows and columns of a target."""
        return self._shape(self.target_scale, self.target_ratio)

    @property
    def context_shape(self) -> tuple[int, int]:
        """Rows and columns of the square that the context is taken from, as far as it has enough patches."""
        return self._shape(self.context_scale, 1.0)

    def _shape(self, scale: float, ratio: float) -> tuple[int, int]:
        rows, columns = math.sqrt(self.patches * scale * ratio), math.sqrt(self.patches * scale / ratio)
        return min(self.grid[0], max(1, round(rows))), min(self.grid[1], max(1, round(columns)))

    @property
    def hidden(self) -> int:
        return self.patches - self.kept


@dataclass(frozen=True)
class InverseBlockMask(MaskSpec):
    """All but one rectangle, which may go over the edges to the other side (CAPI, arXiv 2502.08769).

    ``patches - int(patches * ratio)`` are visible: a rectangle of a height / width log-uniform in [1/2, 2], as far as
    it fits, without the last patches of its last row, moved round by a uniform offset.
    """

    grid: tuple[int, int] = (16, 16)
    ratio: float = 0.65

    def __post_init__(self) -> None:
        _share("ratio", self.ratio)

    @property
    def hidden(self) -> int:
        return int(self.patches * self.ratio)

    def scores(self, uniform: Callable[[int], torch.Tensor]) -> torch.Tensor:
        rows, columns = self.grid
        shape, down, right = (u[:, None] for u in uniform(3).unbind(1))
        visible = self.patches - self.hidden
        high = (visible * 2 ** (2 * shape - 1)).sqrt().ceil().clamp(math.ceil(visible / columns), rows)
        wide = (visible / high).ceil()
        place = torch.arange(self.patches, device=shape.device)
        row = (place // columns - (down * rows).floor()) % rows
        column = (place % columns - (right * columns).floor()) % columns
        return 1.0 - ((column < wide) & (row * wide + column < visible)).double()


@dataclass(frozen=True)
class PublishedBlocksMask(MaskSpec):
    """`TargetBlocksMask` as I-JEPA's authors draw it (arXiv 2301.08243): a size of targets and one of contexts for each
    batch of a process, from its first sample; contexts cut to the batch's shortest, the first patches in raster order.

    Blocks never reach the last row and column, and the cut takes the lower rows: the encoder sees those above more
    often. Shapes change from batch to batch.
    """

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)  # share of the grid, uniform
    target_ratio: tuple[float, float] = (0.75, 1.5)  # height / width, by the same uniform number
    context_scale: tuple[float, float] = (0.85, 1.0)
    least: int = 10  # a context has more patches
    attempts: int = 20  # at such a context; then the last target is let into it, and so on

    def __post_init__(self) -> None:
        for key in ("target_scale", "target_ratio", "context_scale"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key}: needs 0 < low <= high, not {low}, {high}")
        if self.targets < 1 or min(self.grid) < 2:
            raise ValueError("targets, grid: needs a target and two patches a side or more")

    @property
    def hidden(self) -> None:
        return None


@dataclass(frozen=True)
class VariedMask(MaskSpec):
    """Block-wise; a sample is masked with probability `chance`, by a share ~ U(`ratio`) (iBOT, arXiv 2111.07832)."""

    chance: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        _share("ratio", self.ratio[1])
        if not 0 <= self.chance <= 1 or not 0 <= self.ratio[0] <= self.ratio[1]:
            raise ValueError("chance, ratio: needs a probability, and 0 <= low <= high")

    @property
    def hidden(self) -> None:
        return None


@dataclass(frozen=True)
class CropMask(MaskSpec):
    """Blocks in some of the `crops` crops of each sample: iBOT's, DINOv2's and DINOv3's (arXiv 2111.07832, 2304.07193,
    2508.10104).

    How many patches a crop hides is dealt over the crops of the *global* batch, by the run's seed and the step alone;
    where they lie is drawn by its sample. So any number of processes hides the same patches, and how many there are is
    known on the host. `deal` "drawn": a crop is masked with probability `chance`, and hides a share ~ U(`ratio`)
    (iBOT). The others mask exactly ``int(chance * crops)`` of all crops, each with one of as many equal strata of
    `ratio`: "between" draws a share within the stratum (DINOv2), "upper" takes its end, so that every step hides as
    many patches (DINOv3). After ten rectangles that do not fit, the rest is hidden patch by patch (DINOv3), or with
    ``complete=False`` not at all (the authors' iBOT and DINOv2, where a mask in fourteen lacks a few patches).
    """

    crops: int = 2
    deal: Literal["drawn", "between", "upper"] = "upper"
    chance: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    min_block: int = 4
    max_share: float = 0.5  # of the patches: the largest rectangle
    min_aspect: float = 0.3
    complete: bool = True

    def __post_init__(self) -> None:
        _share("ratio", self.ratio[1])
        if not 0 <= self.chance <= 1 or not 0 <= self.ratio[0] <= self.ratio[1]:
            raise ValueError("chance, ratio: needs a probability, and 0 <= low <= high")
        if self.crops < 1 or self.min_block < 1 or not 0 < self.max_share <= 1 or not 0 < self.min_aspect <= 1:
            raise ValueError("crops, min_block, max_share, min_aspect: must be positive, shares at most 1")

    @property
    def hidden(self) -> None:
        return None


@dataclass
class Mask:
    """Hidden patches of a batch, on the device. `keep` and `restore` exist where every sample hides as many."""

    hidden: torch.Tensor  # (B, L) bool; of a SharedMask (1, L) unless it is `per_sample`; of a CropMask (B, crops, L)
    keep: torch.Tensor | None = None  # (B, K) int64: indices of the visible patches, in the order the encoder sees them
    restore: torch.Tensor | None = None  # (B, L) int64: cat(visible, hidden)[restore] is raster order
    noise: torch.Tensor | None = None  # (B, L) float32 in [0, 1): what a WeightedMask's choice is drawn from
    targets: torch.Tensor | None = None  # (B, targets, T) int64: patches of each of a TargetBlocksMask's rectangles
    counts: np.ndarray | None = None  # (B, crops) int64, on the host: how many patches each crop of a CropMask hides


@dataclass(frozen=True)
class Place:
    """Where a rank's batch lies in its run: what a `CropMask` is dealt by, beside the seed."""

    step: int
    first: int  # the first of its samples, in the global batch
    samples: int  # of the global batch
