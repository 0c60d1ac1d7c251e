"""The oracle: one sample at a time with Pillow and torchvision, slow and obvious. It defines what a view is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as tv

from ...kernels.augment import blur_taps
from ...outside import imported
from ..images.decode import decode
from ..rng import drawer, of_rows
from ..spec import ByteSource, InputSpec, ViewParams, ViewSpec
from .draw import draw_views, stream_name
from .finish import erasing_noise
from .randaugment import NAMES

_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
_FILTER = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply_view(
    image: Image.Image,
    view: ViewSpec,
    params: ViewParams,
    copy: int,
    sample: int,
    noise: torch.Tensor | None,
    own: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels,
) -> torch.Tensor:
    """(parts, 3, side, side) float32: one view of one upright RGB image; noise (3, size, size) is for erased pixels,
    `own` what the view's own operations make of (size, size, 3) uint8.
    """
    image = cut(image, view, params, copy, sample)
    if params.flip[copy, sample]:
        image = ImageOps.mirror(image)
    if view.rotate:
        image = image.rotate(-params.angle[copy, sample].item(), Image.Resampling.NEAREST)
    if params.policy is not None:
        for operation, magnitude in params.policy[copy, sample].tolist():
            if operation >= 0:
                image = augment(image, NAMES[int(operation)], magnitude, view.randaugment.fill)
    pixels = own(torch.from_numpy(np.array(image))).permute(2, 0, 1)
    x = tv.to_dtype(pixels, torch.float32, scale=True)
    if params.gray[copy, sample] and view.gray_first:
        x = _gray(x, view)
    for operation in params.order[copy, sample].tolist():
        if operation >= 0:
            x = _JITTER[operation](x, params.jitter[copy, sample, operation].item())
    if params.gray[copy, sample] and not view.gray_first:
        x = _gray(x, view)
    if params.sigma[copy, sample] > 0:
        x = tv.gaussian_blur(x, blur_taps(view.blur_sigma[1]), params.sigma[copy, sample].item())
    if params.solarize[copy, sample]:
        x = tv.solarize(x, 128 / 255)
    x = tv.normalize(x, view.mean, view.std)
    if params.dropped is not None:
        x[params.dropped[copy, sample]] = 0
    if params.erased is not None:
        left, top, width, height = params.erased[copy, sample].tolist()
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        x[inside] = noise[inside]
    if view.parts == "rotations":
        return torch.stack([torch.rot90(x, -turns, (1, 2)) for turns in range(4)])
    if view.parts == "patches":
        corners = params.patches[copy, sample].tolist()
        return torch.stack([x[:, top : top + view.side, left : left + view.side] for left, top in corners])
    return x[None]


def _operate(
    pixels: torch.Tensor, *, view: ViewSpec, seed: int, epoch: int, sample: torch.Tensor, copy: int
) -> torch.Tensor:
    """(size, size, 3) uint8 -> what the view's own operations make of that sample alone."""
    for number, operation in enumerate(view.operations):
        draw = drawer(seed, [stream_name(view, copy, f"/{number}/{operation.name}")], epoch, sample)
        if draw(1).item() < operation.chance:
            pixels = imported(operation.name, "operations")(pixels[None], draw, **operation.options)[0]
    return pixels


def cut(image: Image.Image, view: ViewSpec, params: ViewParams, copy: int, sample: int) -> Image.Image:
    """The geometric half of a view but for its flip: crop, resize, window."""
    left, top, width, height = params.crop[copy, sample].tolist()
    image = image.crop((left, top, left + width, top + height))
    size = tuple(params.resized[copy, sample].tolist())
    image = image.resize(size, _FILTER[view.interpolation]) if view.antialias else resize_by_taps(image, size, view)
    if view.crop != "window":
        return image
    border = view.padding
    padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), view.padding_mode)
    left, top = (params.offset[copy, sample] + border).tolist()
    return Image.fromarray(padded[top : top + view.size, left : left + view.size])


def resize_by_taps(image: Image.Image, size: tuple[int, int], view: ViewSpec) -> Image.Image:
    """OpenCV's resize to `size` (width, height): pixel centres at halves, 2 or 4 taps a side, borders repeated."""
    x = np.asarray(image).astype(np.float64)
    for axis, target in ((1, size[0]), (0, size[1])):
        source = x.shape[axis]
        centre = (np.arange(target) + 0.5) * source / target - 0.5
        first = np.floor(centre)
        reach = (0, 1) if view.interpolation == "bilinear" else (-1, 0, 1, 2)
        total = 0.0
        for k in reach:
            weight = _weight(np.abs(centre - first - k), view.interpolation)
            taps = np.take(x, np.clip(first + k, 0, source - 1).astype(int), axis=axis)
            total = total + taps * weight.reshape((-1, 1) if axis == 1 else (-1, 1, 1))
        x = total
    return Image.fromarray(np.clip(np.rint(x), 0, 255).astype(np.uint8))


def _weight(distance: np.ndarray, interpolation: str) -> np.ndarray:
    """Triangle, or Keys' cubic with a = -0.75."""
    if interpolation == "bilinear":
        return 1 - distance
    a, d = -0.75, distance
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, far)


def _gray(x: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    if view.gray_weights == "mean":
        return x.mean(0, keepdim=True).expand(3, -1, -1)
    return tv.rgb_to_grayscale(x, num_output_channels=3)


def augment(image: Image.Image, name: str, magnitude: float, fill: tuple[int, int, int]) -> Image.Image:
    """One operation of RandAugment, as Pillow does it."""
    side = image.width
    sources = {  # where the pixel at (x, y) comes from: (a, b, c, d, e, f) means (a x + b y + c, d x + e y + f)
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, magnitude * side, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, magnitude * side),
    }
    if name in sources:
        bilinear = Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, sources[name], bilinear, fillcolor=fill)
    operations = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(-magnitude, Image.Resampling.BILINEAR, fillcolor=fill),
        "posterize": lambda: image.point([v & -(2 ** int(8 - magnitude)) for v in range(256)] * 3),
        "solarize": lambda: ImageOps.solarize(image, magnitude),
        "solarize_add": lambda: image.point([min(255, v + int(magnitude)) if v < 128 else v for v in range(256)] * 3),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + magnitude),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + magnitude),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + magnitude),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + magnitude),
    }
    return operations[name]()


def reference_views(
    source: ByteSource, inputs: InputSpec, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Every view of the samples `ids` (B,): name -> (copies, B, 3, side, side); `epoch`: of all, or (B,) of each."""
    images = [Image.fromarray(decode(source.read(i))) for i in ids.tolist()]
    sizes = torch.tensor([(image.height, image.width) for image in images])
    params = draw_views(inputs, seed, epoch, ids, sizes)
    found = {}
    for view in inputs.views:
        copies = []
        for copy in range(view.count):
            noise = erasing_noise(view, seed, epoch, ids, copy) if view.erasing else [None] * len(images)
            each = []
            for b, image in enumerate(images):
                row = slice(b, b + 1)
                own = partial(_operate, view=view, seed=seed, epoch=of_rows(epoch, row), sample=ids[row], copy=copy)
                each.append(apply_view(image, view, params[view.name], copy, b, noise[b], own))
            copies.append(torch.stack(each, dim=1))
        found[view.name] = torch.cat(copies)
    return found
