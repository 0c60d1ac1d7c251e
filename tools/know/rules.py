"""When an image is unusual: filters over the columns, so that whoever disagrees can write another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...pipelines.plan.where import Where


@dataclass(frozen=True)
class Rule:
    """`where` lets through what is unusual; `column` says how much so, `highest` at which end."""

    name: str
    where: str
    column: str
    highest: bool = False
    why: str = ""

    def rows(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which images it holds for, the most unusual first."""
        found = np.flatnonzero(Where(self.where, f"rule {self.name}").rows(columns.__getitem__))
        order = np.argsort(columns[self.column][found], kind="stable")
        return found[order[::-1] if self.highest else order]


def rules_for(columns: Mapping[str, np.ndarray]) -> list[Rule]:
    """The rules for a set. Numbers are fixed where an image of that kind has little to teach anywhere; a size is small
    beside the set's own."""
    readable = columns["readable"]
    pixels = (columns["width"].astype(np.int64) * columns["height"])[readable]
    few = int(np.median(pixels) // 16) if len(pixels) else 0
    return [
        Rule(
            "small", f"readable and width * height < {few}", "width", why="less than a sixteenth of the median's pixels"
        ),
        Rule("narrow", "aspect < 0.33", "aspect", why="three times as high as wide, or more"),
        Rule("wide", "aspect > 3", "aspect", True, "three times as wide as high, or more"),
        Rule("dark", "brightness < 0.08", "brightness", why="a mean of 20 of 255 grey levels, or less"),
        Rule("bright", "brightness > 0.93", "brightness", True, "a mean of 237 of 255 grey levels, or more"),
        Rule("flat", "contrast < 0.04", "contrast", why="a standard deviation of 10 grey levels, or less"),
        Rule("one colour", "commonest > 0.7", "commonest", True, "70 % of the pixels have about the same colour"),
        Rule("blurred", "sharpness < 20 and contrast >= 0.04", "sharpness", why="hardly an edge, though not flat"),
        Rule("bars", "border > 0.1", "border", True, "uniform bars take a tenth of the image"),
        Rule("text", "text > 0.4", "text", True, "two fifths of its blocks look like letters"),
        Rule("coarse JPEG", "jpeg_quality < 25", "jpeg_quality", why="written with a quality below 25"),
    ]
