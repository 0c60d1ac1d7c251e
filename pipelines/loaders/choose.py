"""Which loader serves a source, and why."""

from __future__ import annotations

import importlib.util

import torch

from ...errors import UserError
from ..images.rules import rules
from ..pixels.sidecars import Pixels, open_pixels
from ..sources.beton import BetonSource
from ..sources.stream import StreamSource
from ..spec import ByteSource, InputSpec, Loader
from ..views.finish import dali_problem, deep_problem
from .cpu import CpuLoader
from .memory import MemoryLoader

DALI_HINT = "pip install nvidia-dali-cuda130 (or nvidia-dali-cuda120 for a CUDA 12 driver)"

READ_PIXELS = ("cpu", "memory")  # those loaders that need not decode what is decoded, and know deep images

LOADERS = ("auto", "cpu", "dali", "memory", "webdataset", "ffcv")

NO_PROOF = "is given only what simplejpeg has found sound, and that is not installed: pip install simplejpeg"


def choose_loader(
    source: ByteSource,
    kind: str,
    device: torch.device | str = "cpu",
    inputs: InputSpec | None = None,
    pixels: Pixels | None = None,
) -> tuple[str, str]:
    """(loader, why) for data.loader = auto | cpu | dali | webdataset | ffcv | memory, on the device of the batches.

    An explicit choice is honoured or refused with a `UserError`. Without `inputs`, any loader is taken to make them.
    `pixels` are those of `open_pixels`.
    """
    views, channels = inputs.views if inputs else (), rules().channels
    for view in views:
        if channels is None and view.channels != 3:
            raise UserError(f"{view.name}.mean: {view.channels} values; say so with data.channels={view.channels}")
        if channels is not None and (problem := deep_problem(view, channels)):
            raise UserError(f"{view.name}.{problem}")
    beyond_dali = next(filter(None, map(dali_problem, views)), None)
    if kind != "auto":
        if problem := _problem(source, kind, beyond_dali):
            raise UserError(f"data.loader: {problem}")
        return kind, "asked for" if pixels is None or kind not in READ_PIXELS else f"asked for; pixels: {pixels.words}"
    if getattr(source, "decoded", False):
        return "memory", "the images are arrays"
    if isinstance(source, StreamSource):
        if channels is not None:
            raise UserError(f"data.loader: {_problem(source, 'webdataset', None)}")
        return "webdataset", "the images are streamed"
    if pixels is not None:
        return "cpu", f"pixels: {pixels.words}"
    if channels is not None:
        return "cpu", "deep images"
    if beyond_dali:
        return "cpu", f"dali {beyond_dali}"
    if torch.device(device).type != "cuda":
        return "cpu", "no GPU"
    if not _installed("nvidia", "nvidia.dali"):
        return "cpu", f"DALI, which decodes on the GPU, is not installed: {DALI_HINT}"
    if not _installed("simplejpeg"):
        return "cpu", f"dali {NO_PROOF}"
    return "dali", "a GPU, DALI is installed"


def choose_pixels(
    source: ByteSource,
    kind: str,
    mode: str,
    device: torch.device | str = "cpu",
    inputs: InputSpec | None = None,
) -> tuple[str, str, Pixels | None]:
    """(loader, why, pixels) for data.loader = `kind` and data.pixels = `mode`: what `make_loader` takes.

    Raises `UserError` for what cannot be honoured, and for sidecars that are not those of their tars.
    """
    pixels = open_pixels(source, mode)
    chosen, why = choose_loader(source, kind, device, inputs, pixels)
    if chosen in READ_PIXELS:
        return chosen, why, pixels
    if mode == "require":
        raise UserError(f"data.pixels: the {chosen} loader decodes by itself; use data.loader=cpu")
    return chosen, why, None


def _problem(source: ByteSource, kind: str, beyond_dali: str | None) -> str | None:
    """Why the loader `kind` cannot read this source or make these views."""
    if rules().channels is not None and kind not in READ_PIXELS:
        return f"{kind} reads RGB of eight bits; with data.channels, use data.loader=cpu or memory"
    if kind == "dali" and beyond_dali:
        return f"dali {beyond_dali}; use data.loader=cpu"
    if kind == "dali" and not _installed("nvidia", "nvidia.dali"):
        return f"dali is not installed: {DALI_HINT}"
    if kind == "dali" and not _installed("simplejpeg"):
        return f"dali {NO_PROOF}"
    if kind == "ffcv" and not isinstance(source, BetonSource):
        return f"ffcv reads .beton files, and {source.name} is none; use data.loader=auto"
    if kind == "webdataset":
        if not _installed("webdataset"):
            return "webdataset is not installed: pip install webdataset"
        if not isinstance(source, StreamSource):
            return "webdataset reads addresses; for local shards, data.train=file:/path/train-{000000..000099}.tar"
    elif isinstance(source, StreamSource):
        return f"{kind} reads images in any order; a stream is served by data.loader=webdataset"
    elif getattr(source, "decoded", False) and kind != "memory":
        return f"{kind} reads encoded images; arrays are served by data.loader=memory"
    return None


def _installed(*modules: str) -> bool:
    """Whether all of a package and its submodules can be found, parents first; nothing is imported but parents."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def make_loader(
    source: ByteSource,
    inputs: InputSpec,
    order,
    *,
    kind: str,
    pixels: Pixels | None = None,
    threads: int | None = None,
    hw_decoder_load: float | None = None,
    **rest,
) -> Loader:
    """The loader `kind` that `choose_loader` gave; `rest` is what else `BaseLoader` takes: seed, device, dtype, ...
    `pixels` are those of `open_pixels`, of use to `READ_PIXELS` alone.

    Raises `UserError` for a `hw_decoder_load` that this loader has no use for.
    """
    if hw_decoder_load is not None and kind != "dali":
        raise UserError(f"data.hw_decoder_load: the {kind} loader decodes on CPU cores; use data.loader=dali")
    if kind == "memory":
        return MemoryLoader(source, inputs, order, threads=threads, pixels=pixels, **rest)
    if kind == "cpu":
        return CpuLoader(source, inputs, order, threads=threads, pixels=pixels, **rest)
    if kind == "webdataset":
        from .stream import StreamLoader

        return StreamLoader(source, inputs, order, threads=threads, **rest)
    if kind == "ffcv":
        from .ffcv_file import FfcvLoader

        return FfcvLoader(source, inputs, order, threads=threads, **rest)
    from .dali import DaliLoader

    return DaliLoader(source, inputs, order, threads=threads, hw_decoder_load=hw_decoder_load, **rest)
