"""Names that people type - paths, kinds, splits, options - and what to say when there is none such."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from ...errors import UserError


def existing(path: str | os.PathLike, spellings: Iterable[str] = ()) -> Path:
    """`path` with ``~`` expanded, or, where its last part is one of `spellings`, the one of them that exists.

    Raises `UserError`, with the name most like the first missing part of the path.
    """
    path = missing = Path(path).expanduser()
    candidates = [path, *(path.with_name(name) for name in spellings if path.name in spellings)]
    if found := next((one for one in candidates if one.exists()), None):
        return found
    while not missing.parent.exists():
        missing = missing.parent
    siblings = os.listdir(missing.parent) if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, siblings, n=1)
    folder = missing.parent
    hint = f"; did you mean {folder / close[0]}?" if close else f": no {missing.name!r} in {folder.resolve()}"
    raise UserError(f"{path}: does not exist{hint}")


def choice(where: str | os.PathLike, what: str, value: str, valid: Iterable[str]) -> str:
    """`value`, one of `valid`. Raises `UserError` that names the nearest valid one, or all of them."""
    valid = list(valid)
    if value in valid:
        return value
    close = difflib.get_close_matches(value, valid, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(valid)}" if valid else "it takes none"
    raise UserError(f"{where}: no {what} {value!r}; {hint}")
