"""How far each way of making views is from the definition: ``headrace parity [--data FOLDER] [--out docs/parity.md]``.

The same samples, draws and views through every loader and implementation that is here, and through `reference.py`,
which goes one image at a time with Pillow and torchvision. Differences are in grey levels, 1/255 of the range of a
pixel before it is normalised.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import PIL
import torch

from ..errors import UserError
from ..kernels import use
from ..pipelines.images.jpeg import chroma_halved, jpeg_header
from ..pipelines.images.planes import Planes
from ..pipelines.loaders.choose import make_loader
from ..pipelines.order import Order
from ..pipelines.pixels.sidecars import Pixels
from ..pipelines.sources import open_source
from ..pipelines.sources.subset import Subset
from ..pipelines.spec import ByteSource, InputSpec, ViewSpec
from ..pipelines.views.cut import decode_fast
from ..pipelines.views.finish import dali_problem
from ..pipelines.views.recipes import VIEWS
from ..pipelines.views.reference import reference_views
from ..pipelines.views.yuv import to_planes
from ..places import new_file
from .demo_images import demo_image

BACK_ENDS = ("cpu", "torch", "dali")
YUV = ("yuv420 of 4:2:0", "yuv420 of 4:4:4")
_SAMPLES, _SEED = 8, 11


def _one(**change) -> tuple[ViewSpec, ...]:
    return (ViewSpec(**{"size": 96, "flip": 0.0, "scale": (0.3, 1.0), **change}),)


OPERATIONS: dict[str, tuple[ViewSpec, ...]] = {
    "crop, bilinear": _one(),
    "crop, bicubic": _one(interpolation="bicubic"),
    "crop, lanczos": _one(interpolation="lanczos"),
    "crop, bilinear, not antialiased": _one(antialias=False),
    "flip": _one(flip=1.0),
    "brightness": _one(jitter=1.0, brightness=0.8),
    "contrast": _one(jitter=1.0, contrast=0.8),
    "saturation": _one(jitter=1.0, saturation=0.8),
    "hue": _one(jitter=1.0, hue=0.5),
    "jitter, all four": _one(jitter=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    "grayscale": _one(gray=1.0),
    "blur": _one(blur=1.0),
    "solarise": _one(solarize=1.0),
}


class Halved(Pixels):
    """`Pixels` of a source as ``headrace pixels --format yuv420`` would write them, made when they are asked for."""

    words = "yuv420"

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def image(self, index: int) -> Planes:
        encoded = self._source.read(index)
        return to_planes(decode_fast(encoded), chroma_halved(encoded))

    def size(self, index: int) -> tuple[int, int] | None:
        return self._source.size(index)


class Error(NamedTuple):
    """In grey levels."""

    most: float
    mean: float


def measure(back_end: str, source: ByteSource, views: tuple[ViewSpec, ...]) -> Error | str:
    """The error of one back end over the first samples of a source, or why it cannot make these views.

    `back_end`: cpu (our threads), torch (crops by them, colours by the reference of `augment`), dali (crops by DALI),
    or one of `YUV` (our threads, from planes).
    """
    if back_end == "dali":
        if problem := next(filter(None, map(dali_problem, views)), None):
            return problem
        if importlib.util.find_spec("nvidia") is None:
            return "is not installed"
    inputs, order = InputSpec(views), Order(len(source), min(_SAMPLES, len(source)), shuffle=False)
    kind = "dali" if back_end == "dali" else "cpu"
    pixels = Halved(source) if back_end in YUV else None
    with use("augment", "reference") if back_end == "torch" else nullcontext():
        with closing(make_loader(source, inputs, order, kind=kind, pixels=pixels, threads=2, seed=_SEED)) as loader:
            batch = next(loader)
    oracle = reference_views(source, inputs, _SEED, 0, batch.ids)
    errors = []
    for view in views:
        std = torch.tensor(view.std).view(3, 1, 1)
        errors.append(((batch.views[view.name] - oracle[view.name]) * std * 255).abs().flatten())
    error = torch.cat(errors)
    return Error(error.max().item(), error.mean().item())


def write_photos(folder: Path, count: int = _SAMPLES, subsampling: str = "4:2:0") -> Path:
    """Generated JPEGs, the first ones as large as photographs, as a folder of classes."""
    for index in range(count):
        image, name = demo_image(0, "train", index)
        path = folder / name / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((320 + 40 * index, 240 + 25 * index)).save(path, quality=90, subsampling=subsampling)
    return folder


def by_chroma(source: ByteSource) -> dict[str, ByteSource]:
    """The first samples of a source with chroma of half the resolution, and with all of it, by the names of `YUV`."""
    wanted, found = {(True, True): YUV[0], (False, False): YUV[1]}, {name: [] for name in YUV}
    for index in range(len(source)):
        encoded = source.read(index)
        name = wanted.get(chroma_halved(encoded)) if jpeg_header(encoded) else None
        if name and len(found[name]) < _SAMPLES:
            found[name].append(index)
        if all(len(ids) == _SAMPLES for ids in found.values()):
            break
    return {name: Subset(source, ids) for name, ids in found.items() if ids}


def rows(sources: dict[str, ByteSource], cases: dict[str, tuple[ViewSpec, ...]]) -> Iterator[str]:
    """Lines of a Markdown table: name, then maximum and mean for each back end, of its own source."""
    yield "| | " + " | ".join(sources) + " |"
    yield "|---|" + "---:|" * len(sources)
    for name, views in cases.items():
        cells = []
        for back_end, source in sources.items():
            error = measure(back_end, source, views)
            cells.append(error if isinstance(error, str) else f"{error.most:.3f} ({error.mean:.4f})")
        yield f"| {name} | " + " | ".join(cells) + " |"


_HEAD = """# How equal views are

Written by `headrace parity`. The largest and, in brackets, the mean difference from the definition of a view
(`pipelines/views/reference.py`: Pillow and torchvision, one image at a time), in grey levels: 1/255 of a pixel's range
before it is normalised. {samples} images: {images}. Pillow {pillow}.

- **cpu**: the threads of the cpu loader, which the loaders for streams, .beton files and memory share on CPUs.
- **torch**: the same crops, the colours by the plain PyTorch of `kernels/augment/reference.py`, the definition for
  the Triton kernels. `headrace kernels check augment` holds those to it.
- **dali**: crops by DALI's operators, colours as in cpu.
- **yuv420**: the cpu loader from [pixels beside the shards](data.md) in that format, of photos whose JPEGs have chroma
  of half the resolution (4:2:0) and of all of it (4:4:4), images of their own.
"""

_REASONS = """
## Where differences come from

- yuv420 stores chroma at half the resolution. Of 4:2:0 that is what the JPEG has, found again from its pixels and
  upsampled as libjpeg does it: what remains is rounding, and colours that were cut off at 0 or 255. Of 4:4:4 fine
  colour is lost; contrast, saturation and hue multiply that.
- Crops by our threads are Pillow's, bit for bit: weights with 22 bits behind the point, bytes after each of the two
  passes, and the order of passes that Pillow takes since version 13, down the columns first where that takes away
  more than twice as many rows as the other pass takes columns. Older versions go along the rows first: for these
  crops one level here and there, more next to hard edges with bicubic weights.
- DALI keeps its precision between the passes and rounds once: half a level at most places. That does not explain
  its largest differences, which come where it shrinks much (views of 96 and 32 px) and next to hard edges; contrast,
  saturation and hue multiply them.
- Resizing without antialiasing goes through float32 here and float64 in the definition; what lies half-way between
  two bytes may be rounded either way.
- Hue goes through the six sectors of HSV in float32, whose rounding later operations multiply.
- A blur leaves out weights below 0.00002.
- Solarising is continuous: 127.5 is its own inverse. A value that rounding puts on the other side of the threshold
  of 128 becomes 127 instead of 128, one level. Behind a crop by DALI it is two.
- The definition's colours are in float32. On Pillow images torchvision rounds to bytes after every operation; that
  is not what is compared here.
- All decoders here are libjpeg-turbo with smooth chroma upsampling and the accurate DCT. Fast modes, such as FFCV's,
  differ by one level on average and by 20 at hard edges.
- Rotation takes nearest neighbours, and RandAugment equalises, posterises and solarises: steps, at which a rounding
  before may be many levels after.
"""


def report(source: ByteSource, images: str, apart: dict[str, ByteSource]) -> str:
    """The page; `apart` are the sources of `YUV`."""
    sources = dict.fromkeys(BACK_ENDS, source) | apart
    lines = [_HEAD.format(samples=min(_SAMPLES, len(source)), images=images, pillow=PIL.__version__), "## Operations\n"]
    lines += [*rows(sources, OPERATIONS), "\n## Named views\n", *rows(sources, VIEWS), _REASONS]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="headrace parity", description=__doc__.split(":")[0])
    parser.add_argument("--data", help="any source of images; generated ones without it")
    parser.add_argument("--out", type=new_file, default="docs/parity.md")
    args = parser.parse_args(argv)
    if not args.out.parent.is_dir():
        raise UserError(f"parity: {args.out.parent} is no folder; name a file with --out")
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(args.data or write_photos(Path(folder) / "halved"))
        fine = source if args.data else open_source(write_photos(Path(folder) / "fine", subsampling="4:4:4"))
        apart = by_chroma(source) | by_chroma(fine)
        text = report(source, "photographs" if args.data else "generated, JPEG", apart)
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out}: {len(OPERATIONS)} operations, {len(VIEWS)} named views, {', '.join(BACK_ENDS)}")
    return 0
