"""Tile sizes of Triton kernels: a static table per GPU, over it what `headrace kernels tune` found on this one.

An operator's `triton_impl.py` may define

    TILES = {"sm_80": {"forward d64": {"BLOCK": 32, "num_warps": 4}}, "gfx942": {...}}
    CANDIDATES = {"forward": [{"BLOCK": 32, "num_warps": 4}, {"BLOCK": 64, "num_warps": 8}]}

and reads them through `tile("window_attention", "forward d64", default)`. A key is the kernel's name, then whatever the
choice depends on; `CANDIDATES` has what `tune` tries, by the kernel's name. Training looks up and never measures.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import records

Tile = dict[str, Any]
_trial: dict[tuple[str, str], Tile] = {}  # (operator, key) -> what `tune` is trying
_asked: dict[tuple[str, str], Tile] = {}  # (operator, key) -> what the last launch was given
_pretended, _pretended_processors = "", 0  # the architecture of a GPU that need not be present


def tile(op: str, key: str, default: Tile) -> Tile:
    """The configuration of one kernel launch: that of `tune`, of the operator's table for this GPU, or the default."""
    if _pretended:
        return _table(op).get(_pretended, {}).get(key, default)
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # where tensors of a GPU are
    chosen = _trial.get((op, key)) or _known(op, device).get(key, default)
    _asked[op, key] = chosen
    return chosen


def architecture(device: int | None) -> str:
    """Such as "sm_90" or "gfx942"; "cpu" without a GPU, where Triton interprets."""
    if device is None:
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    return properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"


@cache
def _known(op: str, device: int | None) -> dict[str, Tile]:
    tuned = records.read(overlay_path(device)) or {}
    return {**_table(op).get(architecture(device), {}), **tuned.get(op, {})}


def _table(op: str) -> dict[str, dict[str, Tile]]:
    return getattr(sys.modules[f"{__package__}.{op}.triton_impl"], "TILES", {})


def processors(device: torch.device, otherwise: int) -> int:
    """A GPU's multiprocessors. On a CPU, where kernels are interpreted or executed, few programs shall have much to do
    each, so that putting shares together is tested: `otherwise`."""
    if _pretended_processors or device.type != "cuda":
        return _pretended_processors or otherwise
    return torch.cuda.get_device_properties(device).multi_processor_count


@contextmanager
def pretended(architecture: str, processors: int = 0) -> Iterator[None]:
    """Inside the block `tile` answers as on a GPU of that architecture that nobody has tuned; with `processors` given,
    work is shared out for so many."""
    global _pretended, _pretended_processors
    before, _pretended, _pretended_processors = (_pretended, _pretended_processors), architecture, processors
    try:
        yield
    finally:
        _pretended, _pretended_processors = before


def overlay_path(device: int | None) -> Path:
    """The file of tuned tiles for this device and Triton's version."""
    name = "cpu" if device is None else torch.cuda.get_device_name(device)
    return records.cache_folder() / "tiles" / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}-{records.triton_version()}.json"


def save(op: str, device: int | None, found: dict[str, Tile]) -> Path:
    """Add tuned tiles to the overlay, which is in force from now on. Returns its path."""
    path = overlay_path(device)
    tuned = records.read(path) or {}
    records.write(path, {**tuned, op: {**tuned.get(op, {}), **found}})
    _known.cache_clear()
    return path


@contextmanager
def trial(op: str, key: str, candidate: Tile) -> Iterator[None]:
    """Inside the block `tile` answers with the candidate."""
    _trial[op, key] = candidate
    try:
        yield
    finally:
        del _trial[op, key]


def asked(op: str) -> dict[str, Tile]:
    """Key -> tile of every launch of the operator's kernels since the last call of this function."""
    found = {key: given for (name, key), given in _asked.items() if name == op}
    for key in found:
        del _asked[op, key]
    return found
