"""The first samples of an epoch as an algorithm gets them: pixels, masks, and in words what was drawn for each view."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageColor

from ...pipelines.images.decode import decode
from ...pipelines.loaders.memory import MemoryLoader
from ...pipelines.loaders.quarantine import Quarantine
from ...pipelines.order import Order
from ...pipelines.spec import Batch, ByteSource, InputSpec, Mask, MaskSpec, ViewParams, ViewSpec
from ...pipelines.views.draw import draw_views
from ...pipelines.views.randaugment import NAMES, OPERATIONS

WHOLE_SIDE = 640  # pixels of the longer side at which whole images are kept: enough to look at, small in a page
GREY = 128  # of a hidden patch
_COLORS = ("#e69f00", "#56b4e9", "#00c48c", "#f0e442", "#d55e00", "#cc79a7", "#8fa8ff", "#ffffff")
_PLACES = ("centre", "top left", "middle left", "bottom left", "top", "bottom", "top right", "middle right")
_PARTS = {
    None: ("",),
    "rotations": ("0°", "90°", "180°", "270°"),
    "patches": (*_PLACES, "bottom right"),
}


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
    bad = Quarantine(source, max_bad=1.0)  # how many are too many is for training to say
    loader = MemoryLoader(source, inputs, order, seed=seed, quarantine=bad)
    loader.load_state_dict({"step": epoch * order.steps_per_epoch})
    return next(loader)


def first_samples(source: ByteSource, inputs: InputSpec, samples: int, *, seed: int, epoch: int = 0) -> list[Sample]:
    """`samples` samples (fewer if the source has no more) with every part of every view; each masked one twice."""
    batch = first_batch(source, inputs, samples, seed=seed, epoch=epoch)
    images = [decode(source.read(index)) for index in batch.ids.tolist()]
    sizes = torch.tensor([image.shape[:2] for image in images])
    params = draw_views(inputs, seed, epoch, batch.ids, sizes)
    pixels = {view.name: to_pixels(batch.views[view.name], view) for view in inputs.views}
    found = []
    for row, (index, image) in enumerate(zip(batch.ids.tolist(), images)):
        boxes, tiles, crop = [], [], -1
        for view in inputs.views:
            names = _PARTS[view.parts]
            for copy in range(view.count):
                crop += 1
                title = view.name if view.count == 1 else f"{view.name} {copy + 1}"
                lines = describe(view, params[view.name], copy, row, image.shape[:2])
                seen = seen_boxes(view, params[view.name], copy, row)
                for part, name in enumerate(names):
                    shown = pixels[view.name][copy * len(names) + part, row]
                    where = len(boxes) + (part if len(seen) > 1 else 0)
                    told = lines if part == 0 else []
                    tiles.append(Tile(f"{title}, {name}" if name else title, shown.numpy(), where, told))
                    mask = batch.mask and _of_crop(batch.mask, crop)
                    if mask is not None and view.parts is None and covers(inputs.mask, view):
                        covered = cover(shown, mask, row, inputs.mask)
                        tiles.append(Tile(f"{title}, masked", covered.numpy(), where, [_masked(mask, row)]))
                boxes += seen
        label = source.label(index)
        name = source.classes[label] if source.classes is not None and label >= 0 else None
        height, width = image.shape[:2]
        found.append(Sample(index, source.key(index), name, height, width, _shrink(image), boxes, tiles))
    return found


def crop_color(crop: int) -> str:
    """The colour that a crop's outline and the edge of its pictures share; distinct to colour-blind eyes for eight."""
    return _COLORS[crop % len(_COLORS)]


def seen_boxes(view: ViewSpec, params: ViewParams, copy: int, sample: int) -> list[tuple[int, int, int, int]]:
    """Left, top, width, height, in pixels of the upright image, of what a view shows of it; of patches, of each."""
    left, top, width, height = params.crop[copy, sample].tolist()
    across, down = (side / resized for side, resized in zip((width, height), params.resized[copy, sample].tolist()))
    corners, side = [(0, 0)], view.size
    if view.parts == "patches":
        corners, side = params.patches[copy, sample].tolist(), view.side
        if params.flip[copy, sample]:
            corners = [(view.size - side - x, y) for x, y in corners]
    start, above = params.offset[copy, sample].tolist()
    return [
        (round(left + across * (start + x)), round(top + down * (above + y)), round(across * side), round(down * side))
        for x, y in corners
    ]


def describe(view: ViewSpec, params: ViewParams, copy: int, sample: int, size: tuple[int, int]) -> list[str]:
    """What was drawn for one view of an image of `size` (height, width), in the order in which it is applied.

    Only what changes the view is named: "flipped" is not there for a view that was not. The blanks inside the parts
    of the jitter do not break.
    """
    left, top, width, height = params.crop[copy, sample].tolist()
    share = width * height / (size[0] * size[1])
    lines = [f"crop {width} × {height} at ({left}, {top}), {share:.0%} of the area"]
    if view.crop == "window":
        (wide, high), (start, above) = params.resized[copy, sample].tolist(), params.offset[copy, sample].tolist()
        lines = [f"window at ({start}, {above}) of the image at {wide} × {high}"]
    if params.flip[copy, sample]:
        lines.append("flipped")
    if view.rotate:
        lines.append(f"turned by {params.angle[copy, sample].item():+.1f}°")
    if params.policy is not None:
        for operation, magnitude in params.policy[copy, sample].tolist():
            if operation >= 0:
                name = NAMES[int(operation)]
                lines.append(name.replace("_", " ") + (f" {magnitude:+.2f}" if any(OPERATIONS[name][:2]) else ""))
    gray = ["grayscale"] if params.gray[copy, sample] else []
    brightness, contrast, saturation, hue = params.jitter[copy, sample].tolist()
    words = (
        f"brightness\u00a0×{brightness:.2f}" if brightness != 1 else None,
        f"contrast\u00a0×{contrast:.2f}" if contrast != 1 else None,
        f"saturation\u00a0×{saturation:.2f}" if saturation != 1 else None,
        f"hue\u00a0{360 * hue:+.0f}°" if hue != 0 else None,
    )
    done = [words[operation] for operation in params.order[copy, sample].tolist() if operation >= 0]
    jitter = [" → ".join(word for word in done if word)] if any(done) else []
    lines += gray + jitter if view.gray_first else jitter + gray
    if params.sigma[copy, sample] > 0:
        lines.append(f"blur, sigma {params.sigma[copy, sample].item():.2f} px")
    if params.solarize[copy, sample]:
        lines.append("solarised")
    if params.dropped is not None and params.dropped[copy, sample].any():
        which = params.dropped[copy, sample].nonzero()[:, 0].tolist()
        lines.append(f"without channel{'s' * (len(which) > 1)} {', '.join(map(str, which))}")
    if params.erased is not None and params.erased[copy, sample, 2] > 0:
        left, top, width, height = params.erased[copy, sample].tolist()
        lines.append(f"erased {width} × {height} at ({left}, {top})")
    return lines


def to_pixels(x: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    """(..., C, S, S) normalised, on any device -> (..., S, S, 3) uint8 on the CPU: its first three channels, or the
    first as gray."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (view.mean, view.std))
    levels = ((x.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
    return levels[..., :3] if view.channels > 2 else levels[..., :1].expand(*levels.shape[:-1], 3)


def covers(mask: MaskSpec, view: ViewSpec) -> bool:
    """Whether the mask's patches are whole pixels of the view."""
    return view.size % mask.grid[0] == view.size % mask.grid[1] == 0


def cover(pixels: torch.Tensor, mask: Mask, sample: int, spec: MaskSpec) -> torch.Tensor:
    """(S, S, 3) uint8 with hidden patches made grey, but for those to be predicted, which are tinted by rectangle."""
    shown = hide(pixels, mask.hidden[sample % len(mask.hidden)], spec)
    if mask.targets is not None:
        for number, patches in enumerate(mask.targets[sample].cpu()):
            tint = torch.tensor(ImageColor.getrgb(crop_color(number)), dtype=torch.float32)
            block = _stretch(torch.zeros(spec.patches, dtype=torch.bool).index_fill(0, patches, True), pixels, spec)
            shown = torch.where(block[..., None], (0.55 * pixels + 0.45 * tint).to(torch.uint8), shown)
    return shown


def hide(pixels: torch.Tensor, hidden: torch.Tensor, mask: MaskSpec) -> torch.Tensor:
    """(..., S, S, 3) uint8 with the patches of `hidden` (..., L) bool made grey."""
    return torch.where(_stretch(hidden.cpu(), pixels, mask)[..., None], GREY, pixels)


def _stretch(patches: torch.Tensor, pixels: torch.Tensor, mask: MaskSpec) -> torch.Tensor:
    """(..., L) -> (..., S, S): each patch's value at all of its pixels."""
    patches = patches.unflatten(-1, mask.grid)
    for axis in (-2, -1):
        patches = patches.repeat_interleave(pixels.shape[-2] // patches.shape[axis], axis)
    return patches


def _of_crop(mask: Mask, crop: int) -> Mask | None:
    """What is hidden of one crop, where crops are masked each on its own; None for one that never is."""
    if mask.hidden.dim() == 2:
        return mask
    return replace(mask, hidden=mask.hidden[:, crop]) if crop < mask.hidden.shape[1] else None


def _masked(mask: Mask, sample: int) -> str:
    hidden = mask.hidden[sample % len(mask.hidden)]
    words = f"{int(hidden.sum())} of {hidden.numel()} patches hidden"
    return words if mask.targets is None else f"{words}, tinted: to be predicted"


def _shrink(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((WHOLE_SIDE, WHOLE_SIDE))
    return np.asarray(picture)
