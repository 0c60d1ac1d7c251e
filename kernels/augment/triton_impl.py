"""Augmentation in Triton: one program per tile of a view; the whole colour chain of a pixel stays in registers.

Contrast needs the mean luma of the image as it stands just before it. So a first launch runs the chain up to there and
writes one sum per tile (views without contrast exit at once); the second starts again from the crop's bytes, which is
3 bytes read instead of 6 or 12 written and read, adds the sums in a fixed order, and finishes. Blurred views leave
the second launch for two more, one an axis, which all other views exit from at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UserError
from ..aot import Build
from ..tiles import tile
from . import reference
from .interleaved import interleaved, mirrored, separated
from .reference import LUMA, blur_taps
from .table import COLUMNS

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _FIRST, _GRAY, _SIGMA, _SOLARIZE, _FLIP = (
    tl.constexpr(COLUMNS.index(name))
    for name in ("brightness", "contrast", "saturation", "hue", "first", "gray", "sigma", "solarize", "flip")
)
_COLUMNS = tl.constexpr(len(COLUMNS))
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in LUMA)
_THRESHOLD = tl.constexpr(reference.SOLARIZE)

DEFAULT = {"BLOCK": 1024, "num_warps": 4}
BLUR = {"SIDE": 32, "num_warps": 4}
_TRIED = [{"BLOCK": 32 * pixels * warps, "num_warps": warps} for warps in (1, 2, 4, 8) for pixels in (8, 16)]
CANDIDATES = {
    "luma": _TRIED,
    "colour": _TRIED,
    "blur": [{"SIDE": side, "num_warps": warps} for side in (16, 32, 64) for warps in (1, 2, 4, 8)],
}


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luma(r, g, b):
    return _RED * r + _GREEN * g + _BLUE * b


@triton.jit
def _ramp(k):
    """How much of the chroma a channel lacks, `k` sectors of the colour circle on."""
    k = k - 6.0 * tl.floor(k * (1 / 6))
    return _clamp(tl.minimum(k, 4.0 - k))


@triton.jit
def _turn(r, g, b, shift):
    value = tl.maximum(r, tl.maximum(g, b))
    chroma = value - tl.minimum(r, tl.minimum(g, b))
    is_red, is_green = value == r, value == g
    ahead = tl.where(is_red, g - b, tl.where(is_green, b - r, r - g)) / tl.where(chroma == 0.0, 1.0, chroma)
    sector = ahead + (tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0)) + 6.0 * shift)
    return value - chroma * _ramp(sector + 5), value - chroma * _ramp(sector + 3), value - chroma * _ramp(sector + 1)


@triton.jit
def _adjust(operation, r, g, b, row, mean):
    """One part of the jitter."""
    if operation == _BRIGHTNESS:
        factor = tl.load(row + _BRIGHTNESS)
        r, g, b = _clamp(r * factor), _clamp(g * factor), _clamp(b * factor)
    elif operation == _CONTRAST:
        factor = tl.load(row + _CONTRAST)
        other = (1.0 - factor) * mean
        r, g, b = _clamp(r * factor + other), _clamp(g * factor + other), _clamp(b * factor + other)
    elif operation == _SATURATION:
        factor = tl.load(row + _SATURATION)
        other = (1.0 - factor) * _luma(r, g, b)
        r, g, b = _clamp(r * factor + other), _clamp(g * factor + other), _clamp(b * factor + other)
    elif operation == _HUE:
        r, g, b = _turn(r, g, b, tl.load(row + _HUE))
    return r, g, b


@triton.jit
def _grayscale(r, g, b, row, MEAN_WEIGHTS: tl.constexpr):
    if tl.load(row + _GRAY) > 0:
        if MEAN_WEIGHTS:
            gray = (r + g + b) / 3.0
        else:
            gray = _luma(r, g, b)
        r, g, b = gray, gray, gray
    return r, g, b


@triton.jit
def _load_crop(pixels, group, inside, mirror, N: tl.constexpr):
    """Three channels (G, N) of these groups of N pixels, from last to first with `mirror`."""
    at = pixels + group[:, None] * (3 * N) + tl.arange(0, N)[None, :]
    first = tl.load(at, mask=inside, other=0)
    second = tl.load(at + N, mask=inside, other=0)
    third = tl.load(at + 2 * N, mask=inside, other=0)
    r, g, b = first, second, third
    if N > 1:
        r, g, b = separated(first, second, third, N)
        if mirror:
            r, g, b = mirrored(r, N), mirrored(g, N), mirrored(b, N)
    # 1/255 is rounded, but 128 times it is not rounded again: 128 is as far above the solarisation as it should be.
    return r.to(tl.float32) * (1 / 255), g.to(tl.float32) * (1 / 255), b.to(tl.float32) * (1 / 255)


@triton.jit
def _luma_kernel(
    pixels,
    table,
    partial,
    TILES: tl.constexpr,
    SIZE: tl.constexpr,
    GRAY_FIRST: tl.constexpr,
    MEAN_WEIGHTS: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    # 64 bit from here on: 16384 views of 224x224 hold 2.5e9 values.
    view = (program // TILES).to(tl.int64)
    row = table + view * _COLUMNS
    contrasts = 0
    for k in range(4):
        contrasts += (tl.load(row + _FIRST + k) == _CONTRAST).to(tl.int32)
    if contrasts > 0:
        group = program % TILES * (BLOCK // N) + tl.arange(0, BLOCK // N)
        inside = (group < SIZE * SIZE // N)[:, None]
        r, g, b = _load_crop(pixels + view * (SIZE * SIZE * 3), group, inside, False, N)
        if GRAY_FIRST:
            r, g, b = _grayscale(r, g, b, row, MEAN_WEIGHTS)
        before = contrasts
        for k in range(4):
            operation = tl.load(row + _FIRST + k)
            if operation == _CONTRAST:
                before = 0
            if before > 0:
                r, g, b = _adjust(operation, r, g, b, row, 0.0)
        tl.store(partial + program, tl.sum(tl.sum(tl.where(inside, _luma(r, g, b), 0.0), 1), 0))


@triton.jit
def _finish(
    out, group, inside, r, g, b, row, scales, offsets, SIZE: tl.constexpr, PATCH: tl.constexpr, N: tl.constexpr
):
    """Solarise, normalise, and write where the layout of the view that begins at `out` has these groups of pixels."""
    if tl.load(row + _SOLARIZE) > 0:
        r = tl.where(r >= _THRESHOLD, 1.0 - r, r)
        g = tl.where(g >= _THRESHOLD, 1.0 - g, g)
        b = tl.where(b >= _THRESHOLD, 1.0 - b, b)
    r, g, b = r * scales[0] + offsets[0], g * scales[1] + offsets[1], b * scales[2] + offsets[2]
    if PATCH > 0:
        y, x = group // (SIZE // N), group % (SIZE // N) * N
        patch = y // PATCH * (SIZE // PATCH) + x // PATCH
        group = (patch * PATCH + y % PATCH) * (PATCH // N) + x % PATCH // N
    if N > 1:
        r, g, b = interleaved(r, g, b, N)
    target = out + group[:, None] * (3 * N) + tl.arange(0, N)[None, :]
    tl.store(target, r.to(out.dtype.element_ty), mask=inside)
    tl.store(target + N, g.to(out.dtype.element_ty), mask=inside)
    tl.store(target + 2 * N, b.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _colour_kernel(
    pixels,
    table,
    partial,
    work,
    out,
    scale_r,
    scale_g,
    scale_b,
    offset_r,
    offset_g,
    offset_b,
    TILES: tl.constexpr,
    SUMS: tl.constexpr,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    GRAY_FIRST: tl.constexpr,
    MEAN_WEIGHTS: tl.constexpr,
    BLUR: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SUMS_BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    view = (program // TILES).to(tl.int64)
    row = table + view * _COLUMNS
    part = tl.arange(0, SUMS_BLOCK)
    mean = tl.sum(tl.load(partial + view * SUMS + part, mask=part < SUMS, other=0.0), 0) / (SIZE * SIZE)
    group = program % TILES * (BLOCK // N) + tl.arange(0, BLOCK // N)
    inside = (group < SIZE * SIZE // N)[:, None]
    x = group % (SIZE // N)
    mirror = tl.load(row + _FLIP) > 0
    source = tl.where(mirror, group - x + (SIZE // N - 1 - x), group)
    r, g, b = _load_crop(pixels + view * (SIZE * SIZE * 3), source, inside, mirror, N)
    if GRAY_FIRST:
        r, g, b = _grayscale(r, g, b, row, MEAN_WEIGHTS)
    for k in range(4):
        r, g, b = _adjust(tl.load(row + _FIRST + k), r, g, b, row, mean)
    if not GRAY_FIRST:
        r, g, b = _grayscale(r, g, b, row, MEAN_WEIGHTS)
    sharp = True
    if BLUR:
        sharp = tl.load(row + _SIGMA) <= 0
    if sharp:
        scales, offsets = (scale_r, scale_g, scale_b), (offset_r, offset_g, offset_b)
        _finish(out + view * (SIZE * SIZE * 3), group, inside, r, g, b, row, scales, offsets, SIZE, PATCH, N)
    else:
        plane = work + view * (SIZE * SIZE * 3) + group[:, None] * N + tl.arange(0, N)[None, :]
        tl.store(plane, r.to(work.dtype.element_ty), mask=inside)
        tl.store(plane + SIZE * SIZE, g.to(work.dtype.element_ty), mask=inside)
        tl.store(plane + 2 * SIZE * SIZE, b.to(work.dtype.element_ty), mask=inside)


@triton.jit
def _groups(x, N: tl.constexpr):
    return tl.reshape(x, (x.shape[0] * x.shape[1] // N, N))


@triton.jit
def _blur_kernel(
    work,
    table,
    out,
    scale_r,
    scale_g,
    scale_b,
    offset_r,
    offset_g,
    offset_b,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    RADIUS: tl.constexpr,
    LAST: tl.constexpr,
    N: tl.constexpr,
    SIDE: tl.constexpr,
):
    """One axis of the blur: along the columns of planes, which it leaves on their side, or (LAST) of those, which are
    the rows, into finished views. So neighbours in memory always have the same taps, rows of the plane."""
    ACROSS: tl.constexpr = (SIZE + SIDE - 1) // SIDE
    program = tl.program_id(0)
    view = (program // (ACROSS * ACROSS)).to(tl.int64)
    row = table + view * _COLUMNS
    sigma = tl.load(row + _SIGMA)
    if sigma > 0:
        first_y, first_x = program % (ACROSS * ACROSS) // ACROSS * SIDE, program % ACROSS * SIDE
        y, x = first_y + tl.arange(0, SIDE), first_x + tl.arange(0, SIDE)
        inside = (y < SIZE)[:, None] & (x < SIZE)[None, :]
        plane, begin = work + view * (SIZE * SIZE * 3), out + view * (SIZE * SIZE * 3)
        rate = -0.5 / (sigma * sigma)
        total = sigma * 0.0
        r = tl.zeros((SIDE, SIDE), tl.float32)
        g, b = r, r
        for k in range(2 * RADIUS + 1):
            weight = tl.exp(rate * ((k - RADIUS) * (k - RADIUS)))
            total += weight
            reflected = SIZE - 1 - tl.abs(SIZE - 1 - tl.abs(y + (k - RADIUS)))
            tap = plane + reflected[:, None] * SIZE + x[None, :]
            r += weight * tl.load(tap, mask=inside, other=0.0).to(tl.float32)
            g += weight * tl.load(tap + SIZE * SIZE, mask=inside, other=0.0).to(tl.float32)
            b += weight * tl.load(tap + 2 * SIZE * SIZE, mask=inside, other=0.0).to(tl.float32)
        r, g, b = tl.trans(r / total), tl.trans(g / total), tl.trans(b / total)
        if LAST:
            across = first_y // N + tl.arange(0, SIDE // N)
            group = tl.reshape(x[:, None] * (SIZE // N) + across[None, :], (SIDE * SIDE // N,))
            inside = tl.reshape((x < SIZE)[:, None] & (across < SIZE // N)[None, :], (SIDE * SIDE // N, 1))
            r, g, b = _groups(r, N), _groups(g, N), _groups(b, N)
            scales, offsets = (scale_r, scale_g, scale_b), (offset_r, offset_g, offset_b)
            _finish(begin, group, inside, r, g, b, row, scales, offsets, SIZE, PATCH, N)
        else:
            inside = tl.trans(inside)
            target = begin + x[:, None] * SIZE + y[None, :]
            tl.store(target, r.to(out.dtype.element_ty), mask=inside)
            tl.store(target + SIZE * SIZE, g.to(out.dtype.element_ty), mask=inside)
            tl.store(target + 2 * SIZE * SIZE, b.to(out.dtype.element_ty), mask=inside)


def _together(size: int, patch_size: int, dtype: torch.dtype) -> int:
    """Neighbouring pixels of a thread: stores of 16 bytes where rows, of patches too, consist of such groups."""
    for pixels in (16 // dtype.itemsize, 4):
        if size % pixels == 0 and patch_size % pixels == 0:
            return pixels
    return 1


def augment(
    pixels: Tensor,
    table: Tensor,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    sigma_max: float = 0.0,
    gray_weights: str = "luma",
    gray_first: bool = False,
    patch_size: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Arguments and result of `headrace.kernels.augment.augment`, without float64."""
    if not (pixels.is_contiguous() and table.is_contiguous()):
        raise UserError("augment: pixels and table must be contiguous; call .contiguous() where they are made")
    count, size = pixels.shape[:2]
    if patch_size:
        out = pixels.new_empty((count, (size // patch_size) ** 2, patch_size**2 * 3), dtype=dtype)
    else:
        out = torch.empty((count, 3, size, size), dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
    if count == 0:
        return out
    luma, colour = (tile("augment", f"{name} s{size}", DEFAULT) for name in ("luma", "colour"))
    blur = tile("augment", f"blur s{size}", BLUR)
    sums, tiles = (triton.cdiv(size * size, chosen["BLOCK"]) for chosen in (luma, colour))
    blur_tiles = triton.cdiv(size, blur["SIDE"]) ** 2
    gray = {"GRAY_FIRST": gray_first, "MEAN_WEIGHTS": gray_weights == "mean"}
    normalize = (*(1 / s for s in std), *(-m / s for m, s in zip(mean, std)))
    partial = torch.empty(count * sums, dtype=torch.float32, device=pixels.device)
    # Planes between the passes of the blur. Half precision rounds to a 16th of a grey level, bfloat16 views to a whole.
    half = torch.float16 if dtype == torch.bfloat16 else torch.float32
    work, rows = out, out
    if sigma_max > 0:
        work, rows = (torch.empty(pixels.shape, dtype=half, device=pixels.device) for _ in range(2))
    together = _together(size, patch_size, dtype)
    shape = {"SIZE": size, "PATCH": patch_size, "N": together}
    with torch.cuda.device_of(pixels):
        _luma_kernel[(count * sums,)](pixels, table, partial, TILES=sums, SIZE=size, N=together, **gray, **luma)
        _colour_kernel[(count * tiles,)](
            *(pixels, table, partial, work, out, *normalize),
            **(shape | gray | colour),
            TILES=tiles,
            SUMS=sums,
            SUMS_BLOCK=triton.next_power_of_2(sums),
            BLUR=sigma_max > 0,
        )
        if sigma_max > 0:
            for source, target, last in ((work, rows, False), (rows, out, True)):
                _blur_kernel[(count * blur_tiles,)](
                    *(source, table, target, *normalize),
                    **(shape | blur),
                    RADIUS=blur_taps(sigma_max) // 2,
                    LAST=last,
                )
    return out


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: SimCLR's views, MAE's patches, CIFAR's, and MoCo's first version."""
    floats = dict.fromkeys((f"{kind}_{channel}" for kind in ("scale", "offset") for channel in "rgb"), "fp32")
    for size, dtype, patch, first in ((224, "bf16", 0, False), (224, "bf16", 16, False), (32, "fp32", 0, True)):
        tiles = -(-size * size // DEFAULT["BLOCK"])
        shape = {"SIZE": size, "N": 4 if dtype == "fp32" else 8}
        blocks = {"TILES": tiles, "BLOCK": DEFAULT["BLOCK"]}
        gray = {"GRAY_FIRST": first, "MEAN_WEIGHTS": first}
        half = "*fp16" if dtype == "bf16" else "*fp32"
        label = f"s{size} {dtype}" + (f" p{patch}" if patch else "")
        common = {"pixels": "*u8", "table": "*fp32", "partial": "*fp32", **floats}
        warps = DEFAULT["num_warps"]
        if not patch:
            aligned = ("pixels", "table", "partial")
            types = {name: common[name] for name in aligned}
            yield Build(f"luma {label}", _luma_kernel, types, shape | blocks | gray, aligned, warps)
        yield Build(
            f"colour {label}",
            _colour_kernel,
            {**common, "work": half, "out": f"*{dtype}"},
            {
                **(shape | blocks | gray),
                "PATCH": patch,
                "SUMS": tiles,
                "SUMS_BLOCK": triton.next_power_of_2(tiles),
                "BLUR": not patch,
            },
            ("pixels", "table", "partial", "work", "out"),
            warps,
        )
        for last in (False, True) if not patch else ():
            yield Build(
                f"blur {'y' if last else 'x'} {label}",
                _blur_kernel,
                {"work": half, "table": "*fp32", "out": f"*{dtype}" if last else half, **floats},
                {**shape, "PATCH": 0, "RADIUS": 6, "LAST": last, "SIDE": BLUR["SIDE"]},
                ("work", "table", "out"),
                BLUR["num_warps"],
            )
