"""Checkpoints: written atomically, read without unpickling code, the newest readable one found."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from ..errors import UserError
from ..models.algorithm import Algorithm
from ..models.algorithms import find_algorithm
from . import config

_NAME = re.compile(r"step-(\d{8})\.pt")


def save(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Writes ``step-XXXXXXXX.pt`` after `step` finished steps, then removes all but the newest `keep`.

    The file appears under its name only when it is complete and on disk. `state` holds tensors and plain Python values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as fault:  # torch's zip writer raises RuntimeError when the disk is full
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: the checkpoint could not be written ({fault}); free some space or change train.out")
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def load(path: Path) -> dict:
    """The state on the CPU. Raises `UserError` for anything that is not a complete checkpoint of tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as fault:  # torch raises a dozen kinds for truncated, foreign and hostile files
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        if "Weights only load failed" in reason:
            reason = "it holds Python objects, which are never unpickled"
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or "model" not in state:
        raise UserError(f"{path}: not a headrace checkpoint: it has no 'model'")
    return state


def newest(folder: Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that can be read; unreadable newer ones are named in a warning."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, load(path)
        except UserError as fault:
            warnings.warn(f"{fault}; trying the one before", stacklevel=2)
    return None


def load_algorithm(path: str | Path) -> tuple[Path, Algorithm]:
    """The algorithm of a checkpoint, or of the newest one in a run directory, with its weights, on the CPU."""
    path = Path(path)
    if path.is_dir():
        found = newest(path)
        if found is None:
            raise UserError(f"{path}: holds no readable checkpoint (step-*.pt)")
        path, state = found
    else:
        state = load(path)
    section = state["config"]["algorithm"]
    kind = find_algorithm(section["name"])
    tree = config.from_plain({"algorithm": section}, str(path))
    algorithm = kind(config.build(tree, {"algorithm": kind.Config})["algorithm"])
    algorithm.load_state_dict(state["model"])
    return path, algorithm
