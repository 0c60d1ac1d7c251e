"""From names to things: dotted paths, and what somebody may have meant."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import UserError


def imported(path: str, wanted: Callable[[Any], bool] = callable) -> Any:
    """What ``pkg.mod.name`` or ``pkg.mod:name`` leads to. Raises `UserError` where that is nothing wanted."""
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"kernels: cannot import {module_name!r} of {path!r}: {error}; is it installed?") from error
    found = getattr(module, attribute, None)
    if not wanted(found):
        names = [name for name, value in vars(module).items() if wanted(value)]
        raise UserError(f"kernels: {module_name!r} has no function {attribute!r}{nearest(attribute, names)}")
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the likeliest one, else all there are."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
