"""What the channels of deep images hold: ends in the file's own numbers for `data.range`, and mean and standard
deviation of each channel for the views of a recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..images.budget import reserve
from ..images.channels import read_channels
from ..images.decode import DecodeError, image_size
from ..images.deep import RangeError
from ..images.rules import rules
from ..spec import ByteSource

_LOOKED_AT = 1024  # images, evenly spread over the set
_VALUES = 4096  # of each channel of an image that percentiles are taken of, evenly spread over it
_WHITE = 65535


@dataclass(frozen=True)
class Channels:
    """Of the first so many images, evenly spread, that could be read. Lists have a figure for each channel."""

    images: int
    least: list[float]  # in the file's own numbers
    low: list[float]  # the 1st percentile
    high: list[float]  # the 99th
    most: list[float]
    mean: list[float]  # of what views see, in [0, 1], by the range that holds; empty where the values lie outside of it
    std: list[float]

    def lines(self) -> Iterator[str]:
        """For people, with the keys of a recipe."""
        ends = min(self.low), max(self.high)
        yield f"{len(self.low)} channels, measured on {self.images:,} images, in the file's own numbers:"
        for number, figures in enumerate(zip(self.least, self.low, self.high, self.most)):
            least, low, high, most = (f"{value:g}" for value in figures)
            yield f"  channel {number}: {least} to {most}, 1st and 99th percentile {low} and {high}"
        yield f"  to spread what most of them use: data.range=[{ends[0]:g},{ends[1]:g}]"
        span = rules().range
        said = span if isinstance(span, str) else f"[{span[0]:g},{span[1]:g}]"
        if not self.mean:
            yield f"  data.range={said}: some values lie outside; measure again with --range"
            return
        mean, std = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        yield f"  with data.range={said}: algorithm.view.mean=[{mean}] algorithm.view.std=[{std}]"


def measure_channels(source: ByteSource) -> Channels | None:
    """Figures of up to 1,024 images, evenly spread; None where none of them can be read.

    Images count alike for percentiles, and pixels for mean and deviation. Raises `UserError` for a package that is not
    installed.
    """
    picked, ends, sums, inside = [], [], np.zeros((3, rules().channels)), True
    for index in range(0, len(source), max(1, -(-len(source) // _LOOKED_AT))):
        try:
            data = source.read(index)
            height, width = image_size(data)
            with reserve(height * width * rules().channels):
                samples = read_channels(data)
                flat = samples.values.reshape(-1, rules().channels)
                picked.append(flat[:: max(1, len(flat) // _VALUES)][:_VALUES].astype(np.float64))
                ends.append((flat.min(0), flat.max(0)))
                if inside:
                    sums += _sums(samples.as_levels(rules().range))
        except RangeError:
            inside = False
        except (OSError, DecodeError):
            continue
    if not picked:
        return None
    low, high = np.percentile(np.concatenate(picked), (1, 99), axis=0)
    least, most = np.min([one for one, _ in ends], 0), np.max([one for _, one in ends], 0)
    count, mean, squares = sums[0], *(sums[1:] / np.maximum(sums[0], 1) / [[_WHITE], [_WHITE**2]])
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    known = inside and count.all()
    figures = (least, low, high, most, *((mean, spread) if known else ((), ())))
    return Channels(len(picked), *([float(value) for value in values] for values in figures))


def _sums(levels: np.ndarray) -> np.ndarray:
    """(3, C) number, sum and sum of squares of each channel of (H, W, C) uint16, in float64."""
    planes = levels.transpose(2, 0, 1).reshape(levels.shape[2], -1)
    wide = [plane.astype(np.float64) for plane in planes]
    return np.array([[plane.size for plane in wide], [p.sum() for p in wide], [np.dot(p, p) for p in wide]])
