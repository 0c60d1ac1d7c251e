"""Names that people type - paths, kinds, splits, options - and what to say when there is none such."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
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


def image_field(where: str, kind: str, kinds: str, asked: str, likely: Sequence[str], every: Sequence[str]) -> str:
    """Which of the fields of a sample, or columns of a table, holds its image: the one that is asked for, of `every`
    that may; else the only likely one, or `image`. `kind` and `kinds` are what one and several of them are called.

    Raises `UserError` where there is no telling.
    """
    if asked:
        return choice(where, kind, asked, every)
    if len(likely) == 1 or "image" in likely:
        return "image" if "image" in likely else likely[0]
    bytes_ = f"such {kinds.split()[0]} hold bytes"
    hint = f"choose one of {', '.join(likely)}, as in ?image={likely[0]}" if likely else bytes_
    raise UserError(f"{where}: {len(likely)} {kinds}; {hint}")
