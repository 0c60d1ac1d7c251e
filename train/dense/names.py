"""Categories of data.train and data.val, which go together by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import UserError


def match(train: Any, val: Any, flag: str = "data.val") -> str | None:
    """What to say of categories that val lacks; None where it has all. Their order is nobody's business. `flag` is what
    the user calls it.

    Raises `UserError` for categories of val that train does not have: whatever is learned there, they are not found.
    """
    learned, tested = set(_plain(train.categories)), _plain(val.categories)
    if unknown := [name for name in tested if name not in learned]:
        raise UserError(
            f"{flag}: {val.name} has other categories than {train.name}: {_some(unknown)}; "
            "categories go together by name, and what is tested must be among what is learned"
        )
    absent = [name for name in _plain(train.categories) if name not in set(tested)]
    return f"{flag}: has no category {_some(absent)}; figures are means over the others" if absent else None


def places(names: Sequence[str], among: Sequence[str]) -> np.ndarray:
    """(len(names),) int64: where each stands `among` others, or -1."""
    at = {name: place for place, name in enumerate(_plain(among))}
    return np.array([at.get(name, -1) for name in _plain(names)], np.int64)


def renamed(found: dict, table: np.ndarray) -> dict:
    """Detections (see `detect.predict`) with other numbers for labels; those of a category without one are left out."""
    labels = torch.from_numpy(table)[found["labels"]]
    return {key: value[labels >= 0] for key, value in {**found, "labels": labels}.items()}


def _plain(names: Sequence[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name) for name in names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
