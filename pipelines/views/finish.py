"""The stages of a view around its colour half, for every loader: rare crops, and what needs whole batches on a device.

`cut_view` makes the crops that fast paths do not know. `before_colour` rotates and does RandAugment on the crops,
`operate` calls one's own functions on them, `after_colour` erases and takes parts. They follow `ViewParams`; drawn here
are the noise of `erased` and what one's own functions ask for.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...errors import UserError
from ...outside import imported
from ..images.oversize import fitted
from ..images.planes import Planes
from ..rng import drawer, of_rows, uniform
from ..spec import ViewParams, ViewSpec
from .cut import as_rgb, crop_and_resize
from .draw import stream_name
from .randaugment import rand_augment, rotate

_FILTER = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def rare_crop(view: ViewSpec) -> str | None:
    """What of a view's crop takes `cut_view`, in words; None: an antialiased bilinear or bicubic resize does it all."""
    if view.crop == "window":
        return "windows"
    if not view.antialias:
        return f"{view.interpolation} resizing without antialiasing"
    return "lanczos resizing" if view.interpolation == "lanczos" else None


def dali_problem(view: ViewSpec) -> str | None:
    """What of a view's crop DALI cannot do, as the end of a sentence that starts with its name."""
    if view.crop == "window":
        return "cuts no windows"
    if view.interpolation == "bicubic" and not view.antialias:
        return "has another cubic than OpenCV's for resizing without antialiasing"
    return None


def deep_problem(view: ViewSpec, channels: int) -> str | None:
    """What of a view has no meaning for images of so many channels at sixteen bits: ``key: why, and what to do``."""
    if view.channels != channels:
        values = f"{view.channels} value{'s' * (view.channels != 1)}, the images have {channels} channel"
        return f"mean: {values}{'s' * (channels != 1)}; headrace check --channels {channels} measures mean and std"
    for key, asked in (("randaugment", view.randaugment is not None), ("operations", bool(view.operations))):
        if asked:
            return f"{key}: works on RGB of eight bits, not with data.channels; leave it out"
    jittered = {"saturation": view.jitter and view.saturation, "hue": view.jitter and view.hue}
    colours = jittered | {"gray": view.gray, "solarize": view.solarize}
    if channels != 3 and (keys := ", ".join(key for key, asked in colours.items() if asked)):
        return f"{keys}: for red, green and blue alone, not for {channels} channel{'s' * (channels != 1)}; set to 0"
    if channels == 1 and view.channel_drop:
        return "channel_drop: the only channel of an image cannot be dropped; set it to 0"
    return None


def places(params: ViewParams) -> list[list[list[int]]]:
    """Per copy and sample: left, top, width, height of the crop; width, height after the resize; window's offset."""
    return torch.cat([params.crop, params.resized, params.offset], dim=-1).tolist()


def cut_view(pixels: np.ndarray | Planes, view: ViewSpec, place: list[int], out: np.ndarray) -> None:
    """An upright image, (H, W, 3) uint8, (H, W, C) uint16 or `Planes`, and one of `places` -> out (size, size, C) of
    its type, for any view.

    Rare crops that antialias are Pillow's own. All ways release the interpreter lock.
    """
    if rare_crop(view) is None:
        return crop_and_resize(pixels, place[:4], view.interpolation, out)
    left, top, width, height, *size = place[:6]
    crop = as_rgb(pixels)[top : top + height, left : left + width]
    if view.antialias and crop.dtype == np.uint8:
        resized = np.asarray(Image.fromarray(crop).resize(size, _FILTER[view.interpolation]))
    elif view.antialias:
        resized = resized_deep(crop, size, view.interpolation)
    else:
        planes = torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32))[None]
        planes = F.interpolate(planes, tuple(size[::-1]), mode=view.interpolation, align_corners=False)[0]
        resized = planes.permute(1, 2, 0).numpy().round().clip(0, np.iinfo(crop.dtype).max).astype(crop.dtype)
    if view.crop == "window":
        resized = _window(resized, view, place[6:])
    out[:] = resized


def shrunk_deep(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """(H, W, C) uint16 whose longer side is at most `side`, as `images.encode.shrunk` makes it of RGB."""
    if side is None or max(pixels.shape[:2]) <= side:
        return pixels
    return resized_deep(pixels, list(fitted(pixels.shape[1::-1], side)), "bicubic")


def resized_deep(crop: np.ndarray, size: list[int], interpolation: str) -> np.ndarray:
    """(h, w, C) uint16 -> (height, width, C) of `size` (width, height): Pillow's in floating point, plane by plane."""
    planes = [
        np.asarray(Image.fromarray(crop[..., channel].astype(np.float32)).resize(size, _FILTER[interpolation]))
        for channel in range(crop.shape[2])
    ]
    return np.stack(planes, -1).round().clip(0, np.iinfo(crop.dtype).max).astype(crop.dtype)


def _window(pixels: np.ndarray, view: ViewSpec, offset: list[int]) -> np.ndarray:
    """(size, size, C) at offset (left, top) of pixels (h, w, C), which may lie in the padding around them."""
    outside = []
    for axis, start in ((1, offset[0]), (0, offset[1])):
        side, place = pixels.shape[axis], np.arange(start, start + view.size)
        outside.append((place < 0) | (place >= side))
        if view.padding_mode == "reflect" and side > 1:
            place = side - 1 - np.abs(side - 1 - place % (2 * side - 2))
        elif view.padding_mode == "symmetric":
            place = place % (2 * side)
            place = np.minimum(place, 2 * side - 1 - place)
        pixels = pixels.take(place.clip(0, side - 1), axis)
    if view.padding_mode == "constant":
        pixels[:, outside[0]] = 0
        pixels[outside[1]] = 0
    return pixels


def flips_early(view: ViewSpec) -> bool:
    """Whether `before_colour` does the flip, because something before the colour half comes after it."""
    return bool(view.rotate) or view.randaugment is not None or bool(view.operations)


def before_colour(pixels: torch.Tensor, view: ViewSpec, params: ViewParams) -> torch.Tensor:
    """Flip, rotation and RandAugment of crops (count * B, S, S, C) on any device, where `flips_early`."""
    if not flips_early(view):
        return pixels
    kind = pixels.dtype
    pixels = pixels if kind == torch.uint8 else pixels.to(torch.int32)  # torch indexes no uint16
    flip = params.flip.flatten().to(pixels.device)
    pixels = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    if view.rotate:
        pixels = rotate(pixels, params.angle.flatten().to(pixels.device))
    if view.randaugment is not None:
        pixels = rand_augment(pixels, params.policy.flatten(0, 1), view.randaugment.fill)
    return pixels.to(kind).contiguous()


def operate(
    pixels: torch.Tensor, view: ViewSpec, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """A view's own `operations` on crops (count * B, S, S, 3) uint8 of samples ids (B,) int64, on any device.

    Raises `UserError` for one that gives anything but such crops.
    """
    for number, operation in enumerate(view.operations):
        streams = [stream_name(view, copy, f"/{number}/{operation.name}") for copy in range(view.count)]
        draw = drawer(seed, streams, epoch, ids.to(pixels.device))
        drawn = draw(1) < operation.chance
        made = imported(operation.name, "operations")(pixels, draw, **operation.options)
        if not torch.is_tensor(made) or made.shape != pixels.shape or made.dtype != torch.uint8:
            got = f"{made.dtype} {tuple(made.shape)}" if torch.is_tensor(made) else type(made).__name__
            raise UserError(f"operations: {operation.name} must give uint8 {tuple(pixels.shape)}, it gave {got}")
        pixels = torch.where(drawn.view(-1, 1, 1, 1), made, pixels)
    return pixels


def after_colour(
    x: torch.Tensor, view: ViewSpec, params: ViewParams, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Channel drop, erasing and parts of normalised views x (count, B, C, S, S): (copies, B, C, side, side),
    channels-last.

    ids: (B,) int64 on the CPU. `x` may be overwritten.
    """
    if params.dropped is not None:
        x.masked_fill_(params.dropped.to(x.device)[..., None, None], 0)
    if params.erased is not None:
        for copy in range(view.count):
            rows = params.erased[copy, :, 2].nonzero()[:, 0]
            if len(rows):
                noise = erasing_noise(view, seed, of_rows(epoch, rows), ids[rows].to(x.device), copy).to(x.dtype)
                inside = _inside(params.erased[copy, rows].to(x.device), view.size)
                on_device = rows.to(x.device)
                x[copy, on_device] = torch.where(inside[:, None], noise, x[copy, on_device])
    if view.parts is None:
        return x
    images = x.permute(0, 1, 3, 4, 2)  # (count, B, S, S, C)
    if view.parts == "rotations":
        parts = torch.stack([torch.rot90(images, -turns, (2, 3)) for turns in range(4)], dim=1)
    else:
        left, top = params.patches.long().to(x.device).transpose(1, 2)[..., None].unbind(3)  # (count, 9, B, 1)
        steps = torch.arange(view.side, device=x.device)
        copy, sample = (torch.arange(n, device=x.device) for n in images.shape[:2])
        rows, columns = (top + steps)[..., :, None], (left + steps)[..., None, :]
        parts = images[copy.view(-1, 1, 1, 1, 1), sample.view(-1, 1, 1), rows, columns]
    return parts.flatten(0, 1).contiguous().permute(0, 1, 4, 2, 3)


def erasing_noise(view: ViewSpec, seed: int, epoch: int | torch.Tensor, ids: torch.Tensor, copy: int) -> torch.Tensor:
    """(B, C, size, size) float32, normal, on the device of `ids`: what takes the place of erased pixels."""
    u = uniform(seed, stream_name(view, copy, "/noise"), epoch, ids, view.channels * view.size**2)
    return torch.special.ndtri(u + 2.0**-54).float().view(len(ids), view.channels, view.size, view.size)


def _inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """(N, size, size) bool: which pixels are in boxes (N, 4), left, top, width, height."""
    left, top, width, height = boxes[:, :, None].unbind(1)
    place = torch.arange(size, device=boxes.device)
    across, down = (place >= left) & (place < left + width), (place >= top) & (place < top + height)
    return down[:, :, None] & across[:, None]
