"""Stretches of a run, as recipes write them: "10 epochs", "500 steps", or a share of the run."""

from __future__ import annotations

import re

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(epochs?|steps?)")


def length_in_steps(length: float | str, total_steps: int, steps_per_epoch: int) -> int:
    """A stretch of a run in steps: "10 epochs", "500 steps", or a share of the run in [0, 1].

    Raises `ValueError` for anything else.
    """
    if isinstance(length, str):
        match = _LENGTH.fullmatch(length.strip())
        if match is None:
            raise ValueError(f'needs "10 epochs", "500 steps" or a share in [0, 1], not {length!r}')
        return round(float(match[1]) * (steps_per_epoch if match[2].startswith("epoch") else 1))
    if not 0 <= length <= 1:
        raise ValueError(f'a share of the run lies in [0, 1], not {length}; for epochs write "{length:g} epochs"')
    return round(length * total_steps)
