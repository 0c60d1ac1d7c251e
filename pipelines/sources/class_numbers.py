"""Labels that somebody hands over in Python."""

from __future__ import annotations

import numpy as np

from ...errors import UserError

MOST = 10_000_000  # classes: each has a name, and whoever means fewer has mistaken something else for labels


def class_numbers(labels, count: int, name: str, what: str) -> np.ndarray:
    """(count,) int64 of `labels`: whole numbers from 0, and -1 for none. Raises `UserError`, which begins with `name`;
    `what` is the word for the samples."""
    try:
        values = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf" or values.ndim != 1:
        raise UserError(f"{name}: labels are no list of class numbers; give one for each image, from 0, or -1 for none")
    if len(values) != count:
        raise UserError(f"{name}: {count} {what} but {len(values)} labels")
    good = (values >= -1) & (values < MOST)  # NaN is not
    good[good] = values[good] == np.floor(values[good])
    if not good.all():
        index = int(good.argmin())
        raise UserError(
            f"{name}: label {values[index]} of number {index}: classes are whole numbers from 0; -1 is none"
        )
    return values.astype(np.int64)
