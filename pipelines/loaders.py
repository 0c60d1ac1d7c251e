"""Which loader serves a source, and why."""

from __future__ import annotations

import importlib.util

from ..errors import UserError
from .memory_loader import ArraySource, MemoryLoader
from .spec import ByteSource, InputSpec, Loader

DALI_HINT = "pip install nvidia-dali-cuda130 (or nvidia-dali-cuda120 for a CUDA 12 driver)"


def choose_loader(source: ByteSource, kind: str) -> tuple[str, str]:
    """(loader, why) for data.loader = auto | dali | memory. An explicit choice is honoured or refused."""
    has_dali = importlib.util.find_spec("nvidia.dali") is not None if importlib.util.find_spec("nvidia") else False
    if kind == "dali" and not has_dali:
        raise UserError(f"data.loader: dali is not installed: {DALI_HINT}")
    if kind == "dali" and isinstance(source, ArraySource):
        raise UserError("data.loader: dali reads encoded images; arrays are served by data.loader=memory")
    if kind != "auto":
        return kind, "asked for"
    if isinstance(source, ArraySource):
        return "memory", "the images are arrays"
    if has_dali:
        return "dali", "encoded images, DALI is installed"
    raise UserError(
        f"data.loader: auto wants DALI: {DALI_HINT}; or set data.loader=memory to keep all pixels in memory"
    )


def make_loader(
    source: ByteSource, inputs: InputSpec, order, *, kind: str, threads: int | None = None, **rest
) -> Loader:
    """The loader `kind` (dali or memory) over a source; `rest` is seed, device, rank and world of `BaseLoader`."""
    if kind == "memory":
        return MemoryLoader(source, inputs, order, **rest)
    from .dali_loader import DaliLoader

    return DaliLoader(source, inputs, order, threads=threads, **rest)
