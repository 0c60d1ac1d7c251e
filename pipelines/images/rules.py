"""What a process takes for an image and how it reads samples of more than eight bits: one rule for all that decodes.

It belongs to the process, as Pillow's own limit does, and to no loader: training, evaluation on the way and commands in
the same process cannot see different pixels. A run takes it from `data.range` and `data.max_pixels`, commands from
options of the same names, an evaluation from the run whose encoder it judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...errors import UserError

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte in RGB: Pillow's own limit
Range = tuple[float, float] | Literal["full", "percentile"]


@dataclass(frozen=True)
class Rules:
    """`range`: which values of more than eight bits become black and white. full: those that the format declares;
    percentile: the 1st and the 99th of each image; (low, high): these, in the file's own numbers.
    `max_pixels`: an image of more is bad.

    Raises `ValueError` for values without a meaning, which starts with the field's name.
    """

    range: Range = "full"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if isinstance(self.range, str):
            if self.range not in ("full", "percentile"):
                raise ValueError(f"range: full, percentile or two numbers low,high, not {self.range!r}")
        elif not (all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            raise ValueError(f"range: needs low < high, not {self.range[0]:g}, {self.range[1]:g}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels: must be at least 1, not {self.max_pixels}")


_current = Rules()


def rules() -> Rules:
    return _current


def use_rules(new: Rules) -> None:
    """From here on, for everything that this process decodes."""
    global _current
    _current = new


def parse_range(text: str) -> Range:
    """``full``, ``percentile`` or ``low,high``, as an option of a command has it. Raises `UserError`."""
    low, comma, high = text.partition(",")
    try:
        return Rules((float(low), float(high)) if comma else text).range
    except ValueError as fault:
        words = str(fault).removeprefix("range: ")
        raise UserError(f"--range: {words if words.startswith(('full', 'needs')) else f'no numbers: {text}'}") from None
