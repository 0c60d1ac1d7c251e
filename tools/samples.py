"""The first samples of an epoch as an algorithm gets them: pixels, masks, and in words what was drawn for each view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..pipelines.decode import decode
from ..pipelines.draw import draw_views
from ..pipelines.memory_loader import MemoryLoader
from ..pipelines.order import Order
from ..pipelines.spec import Batch, ByteSource, InputSpec, MaskSpec, ViewParams, ViewSpec

WHOLE_SIDE = 640  # pixels of the longer side at which whole images are kept: enough to look at, small in a page
GREY = 128  # of a hidden patch
_COLORS = ("#e69f00", "#56b4e9", "#00c48c", "#f0e442", "#d55e00", "#cc79a7", "#8fa8ff", "#ffffff")


@dataclass(frozen=True)
class Tile:
    """One picture of a view."""

    title: str
    pixels: np.ndarray  # (size, size, 3) uint8
    crop: int  # which of the sample's `boxes` it was cut from
    lines: list[str]  # what was done to it, in words


@dataclass(frozen=True)
class Sample:
    """One image and everything that became of it."""

    id: int
    key: str
    label: str | None  # the name of its class
    height: int  # of the upright image in pixels
    width: int
    whole: np.ndarray  # (h, w, 3) uint8, at most `WHOLE_SIDE` long
    boxes: list[tuple[int, int, int, int]]  # left, top, width, height of each crop in pixels of the upright image
    tiles: list[Tile]

    @property
    def facts(self) -> str:
        """Sample number, size and label, for captions."""
        label = "no label" if self.label is None else f"label {self.label}"
        return f"sample {self.id:,}, {self.width} × {self.height} px, {label}"


def first_batch(source: ByteSource, inputs: InputSpec, samples: int, *, seed: int, epoch: int = 0) -> Batch:
    """What training reads first in an epoch, whatever its batch size: an epoch's order does not depend on it."""
    order = Order(len(source), min(samples, len(source)), seed=seed)
    loader = MemoryLoader(source, inputs, order, seed=seed)
    loader.load_state_dict({"step": epoch * order.steps_per_epoch})
    return next(loader)


def first_samples(source: ByteSource, inputs: InputSpec, samples: int, *, seed: int, epoch: int = 0) -> list[Sample]:
    """`samples` samples (fewer if the source has no more) with every copy of every view; each masked one twice."""
    batch = first_batch(source, inputs, samples, seed=seed, epoch=epoch)
    images = [decode(source.read(index)) for index in batch.ids.tolist()]
    sizes = torch.tensor([image.shape[:2] for image in images])
    params = draw_views(inputs, seed, epoch, batch.ids, sizes)
    pixels = {view.name: to_pixels(batch.views[view.name], view) for view in inputs.views}
    found = []
    for row, (index, image) in enumerate(zip(batch.ids.tolist(), images)):
        boxes, tiles = [], []
        for view in inputs.views:
            for copy in range(view.count):
                title = view.name if view.count == 1 else f"{view.name} {copy + 1}"
                shown = pixels[view.name][copy, row]
                lines = describe(params[view.name], copy, row, image.shape[:2])
                tiles.append(Tile(title, shown.numpy(), len(boxes), lines))
                if batch.mask is not None:
                    hidden = batch.mask.hidden[row]
                    note = f"{int(hidden.sum())} of {hidden.numel()} patches hidden"
                    covered = hide(shown, hidden, inputs.mask)
                    tiles.append(Tile(f"{title}, masked", covered.numpy(), len(boxes), [note]))
                boxes.append(tuple(params[view.name].crop[copy, row].tolist()))
        label = source.label(index)
        name = source.classes[label] if source.classes is not None and label >= 0 else None
        height, width = image.shape[:2]
        found.append(Sample(index, source.key(index), name, height, width, _shrink(image), boxes, tiles))
    return found


def crop_color(crop: int) -> str:
    """The colour that a crop's outline and the edge of its pictures share; distinct to colour-blind eyes for eight."""
    return _COLORS[crop % len(_COLORS)]


def describe(params: ViewParams, copy: int, sample: int, size: tuple[int, int]) -> list[str]:
    """What was drawn for one view of an image of `size` (height, width), in the order in which it is applied.

    Only what changes the view is named: "flipped" is not there for a view that was not. The blanks inside the parts
    of the jitter do not break.
    """
    left, top, width, height = params.crop[copy, sample].tolist()
    share = width * height / (size[0] * size[1])
    lines = [f"crop {width} × {height} at ({left}, {top}), {share:.0%} of the area"]
    if params.flip[copy, sample]:
        lines.append("flipped")
    brightness, contrast, saturation, hue = params.jitter[copy, sample].tolist()
    words = (
        f"brightness\u00a0×{brightness:.2f}" if brightness != 1 else None,
        f"contrast\u00a0×{contrast:.2f}" if contrast != 1 else None,
        f"saturation\u00a0×{saturation:.2f}" if saturation != 1 else None,
        f"hue\u00a0{360 * hue:+.0f}°" if hue != 0 else None,
    )
    done = [words[operation] for operation in params.order[copy, sample].tolist() if operation >= 0]
    if any(done):
        lines.append(" → ".join(word for word in done if word))
    if params.gray[copy, sample]:
        lines.append("grayscale")
    if params.sigma[copy, sample] > 0:
        lines.append(f"blur, sigma {params.sigma[copy, sample].item():.2f} px")
    if params.solarize[copy, sample]:
        lines.append("solarised")
    return lines


def to_pixels(x: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    """(..., 3, S, S) normalised, on any device -> (..., S, S, 3) uint8 on the CPU."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    return ((x.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def hide(pixels: torch.Tensor, hidden: torch.Tensor, mask: MaskSpec) -> torch.Tensor:
    """(..., S, S, 3) uint8 with the patches of `hidden` (..., L) bool made grey."""
    cover = hidden.cpu().unflatten(-1, mask.grid)
    for axis in (-2, -1):
        cover = cover.repeat_interleave(pixels.shape[-2] // cover.shape[axis], axis)
    return torch.where(cover[..., None], GREY, pixels)


def _shrink(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((WHOLE_SIDE, WHOLE_SIDE))
    return np.asarray(picture)
