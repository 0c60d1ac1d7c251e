"""Numbers of which only some make sense: annotations of fields, which recipes are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """What a number must be, in words and as a test."""

    words: str
    hold: Callable[[float], bool]


Count = Annotated[int, Bounds("an integer from 1 on", lambda n: n >= 1)]  # of layers, units, clusters, ...
Natural = Annotated[int, Bounds("an integer from 0 on", lambda n: n >= 0)]
Positive = Annotated[float, Bounds("a number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Bounds("a number from 0 on", lambda x: x >= 0)]
Part = Annotated[float, Bounds("a number between 0 and 1, neither of them", lambda x: 0 < x < 1)]
Chance = Annotated[float, Bounds("a number from 0 on and below 1", lambda x: 0 <= x < 1)]  # of being left out
Momentum = Chance  # of an average, which at 1 would never move
