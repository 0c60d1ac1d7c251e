"""Numbers of which only some make sense: annotations of fields, for recipes and for what is made in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ..errors import UserError


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


def require(config: Any) -> None:
    """Holds a dataclass that was made in Python, with all that is in it, to the bounds that a recipe is held to.

    Raises `UserError` with a line for each number that is none of those its field may hold.
    """
    if faults := [*_faults(config, type(config), "")]:
        raise UserError("\n".join(f"{type(config).__qualname__}: {fault}" for fault in faults))


_hints = functools.cache(functools.partial(get_type_hints, include_extras=True))


def _faults(value: Any, kind: Any, key: str) -> Iterator[str]:
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(value):
        for each in fields(value):
            yield from _faults(
                getattr(value, each.name), _hints(type(value))[each.name], f"{key}{key and '.'}{each.name}"
            )
    elif origin is Annotated:
        try:
            held = args[1].hold(value)
        except TypeError:
            held = False
        if not held:
            yield f"{key}: needs {args[1].words}, got {value!r}"
    elif origin in (Union, UnionType):
        bounded = next((member for member in args if get_origin(member) in (Annotated, tuple, list)), None)
        if isinstance(value, (int, float, tuple, list)) and bounded is not None:
            yield from _faults(value, bounded, key)
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if origin is list or args[-1] is Ellipsis else args
        for i, (item, each) in enumerate(zip(value, kinds)):
            yield from _faults(item, each, f"{key}[{i}]")
