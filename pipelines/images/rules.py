"""What a process takes for an image, how many channels it reads, and what its samples mean: one rule for all that
decodes.

It belongs to the process, as Pillow's own limit does: training, evaluation on the way and all else that a command opens
cannot see different pixels. A run takes it from `data.channels`, `data.range` and `data.max_pixels`, commands from
options of the same names, an evaluation from the run whose encoder it judges. A loader keeps the rules that it was made
under, in all of its threads, whatever the process goes on to; functions of a notebook leave the process's as they were.
"""

from __future__ import annotations

import argparse
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ...errors import UserError

MOST_CHANNELS = 16
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte in RGB: Pillow's own limit
Range = tuple[float, float] | Literal["full", "percentile"]


@dataclass(frozen=True)
class Rules:
    """`range`: which values of more than eight bits become black and white. full: those that the format declares;
    percentile: the 1st and the 99th of each image; (low, high): these, in the file's own numbers.
    `max_pixels`: an image of more is bad. `channels`: None for RGB of eight bits; a number for images of so many
    channels, at sixteen bits.

    Raises `ValueError` for values without a meaning, which starts with the field's name.
    """

    range: Range = "full"
    max_pixels: int = MAX_PIXELS
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and not 1 <= self.channels <= MOST_CHANNELS:
            raise ValueError(f"channels: 1 to {MOST_CHANNELS}, not {self.channels}")
        if isinstance(self.range, str):
            if self.range not in ("full", "percentile"):
                raise ValueError(f"range: full, percentile or two numbers low,high, not {self.range!r}")
        elif not (all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            raise ValueError(f"range: needs low < high, not {self.range[0]:g}, {self.range[1]:g}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels: must be at least 1, not {self.max_pixels}")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Rules:
        """Those that a recipe's section `data` holds, as plain values; what it does not hold is as usual."""
        found = {key: section[key] for key in RULES if key in section}
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})

    @property
    def unusual(self) -> dict[str, Any]:
        """The fields that are not as usual."""
        return {key: value for key, value in asdict(self).items() if value != getattr(Rules, key)}


RULES = tuple(each.name for each in fields(Rules))
_current = Rules()
_own = threading.local()  # `rules` of a thread that has some


def rules() -> Rules:
    return getattr(_own, "rules", None) or _current


def use_rules(new: Rules) -> None:
    """From here on, for everything that this process decodes, but in threads that `keep_rules`."""
    global _current
    _current = new


def keep_rules(own: Rules | None) -> None:
    """From here on, for this thread alone, whatever the process's are; None: those of the process again."""
    _own.rules = own


@contextmanager
def under(own: Rules) -> Iterator[None]:
    """Inside, this thread keeps these."""
    before = getattr(_own, "rules", None)
    keep_rules(own)
    try:
        yield
    finally:
        keep_rules(before)


@contextmanager
def restored() -> Iterator[None]:
    """Afterwards the process's rules are what they were before, whatever was used inside."""
    before = _current
    try:
        yield
    finally:
        use_rules(before)


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Options of a command that has no recipe: --channels, --range and --max-pixels."""
    text = "read so many channels of sixteen bits, as data.channels (RGB of eight bits)"
    parser.add_argument("--channels", type=int, metavar="N", help=text)
    text = "of images of more than eight bits: full, percentile, or LOW,HIGH in the file's own numbers, as data.range"
    parser.add_argument("--range", type=_range, metavar="RANGE", help=f"{text} (full)")
    text = "an image of more is bad, as data.max_pixels"
    parser.add_argument("--max-pixels", type=int, metavar="N", help=f"{text} ({MAX_PIXELS:,})")


def use_options(given: argparse.Namespace) -> None:
    """What `add_rules` was given is from here on the process's rule; what it was not stays as it is."""
    said = {key: getattr(given, key, None) for key in RULES}
    changed = {key: value for key, value in said.items() if value is not None}
    try:
        use_rules(replace(rules(), **changed))
    except ValueError as fault:
        raise UserError(f"--{str(fault).replace('max_pixels', 'max-pixels')}") from None


def _range(text: str) -> Range:
    low, comma, high = text.partition(",")
    try:
        return (float(low), float(high)) if comma else text
    except ValueError:
        raise argparse.ArgumentTypeError(f"two numbers, as in 0,4095, not {text!r}") from None
