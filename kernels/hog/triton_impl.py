"""HOG in Triton: one program for one channel of one patch, a 16x16 tile whose 3x3 neighbours come from the cache.

Opposite gradients share a bin, so both are turned to gx > 0, or gx = 0 and gy > 0: an angle in [0, pi). It is in bin k
when it has passed k borders, and it has passed the border at angle t when gx cos t >= gy sin t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from .reference import gaussian

COSINES = tl.constexpr(tuple(math.cos(k * math.pi / 9) for k in range(9)))
SINES = tl.constexpr(tuple(math.sin(k * math.pi / 9) for k in range(9)))
# g(i) = exp(-(i - 7.5)^2 / 128) / sum
NORM = tl.constexpr(float(gaussian()[7]) / math.exp(-(0.5**2) / 128))


@triton.jit
def _reflected(i, size):
    i = tl.where(i < 0, -i, i)
    return tl.where(i >= size, 2 * size - 2 - i, i)


@triton.jit(do_not_specialize=["columns", "patches", "channels"])
def _kernel(
    images,
    image_b,
    image_c,
    image_y,
    image_x,
    out,
    columns,
    patches,
    channels,
    height,
    width,
):
    program = tl.program_id(0)
    c = (program % channels).to(tl.int64)
    patch = program // channels % patches
    b = (program // channels // patches).to(tl.int64)
    i = tl.arange(0, 16)
    y = (patch // columns * 16 + i)[:, None]
    x = (patch % columns * 16 + i)[None, :]
    corner = images + b * image_b + c * image_c
    above, below = corner + _reflected(y - 1, height) * image_y, corner + _reflected(y + 1, height) * image_y
    left, right = _reflected(x - 1, width) * image_x, _reflected(x + 1, width) * image_x
    here, middle = corner + y * image_y, x * image_x
    nw, ne = tl.load(above + left).to(tl.float32), tl.load(above + right).to(tl.float32)
    sw, se = tl.load(below + left).to(tl.float32), tl.load(below + right).to(tl.float32)
    across = tl.load(here + left).to(tl.float32) - tl.load(here + right).to(tl.float32)
    down = tl.load(above + middle).to(tl.float32) - tl.load(below + middle).to(tl.float32)
    gx = (nw - ne) + 2.0 * across + (sw - se)
    gy = (nw - sw) + 2.0 * down + (ne - se)
    weight = tl.sqrt(gx * gx + gy * gy)
    near = tl.exp(-((i - 7.5) * (i - 7.5)) / 128.0) * NORM
    weight = weight * near[:, None] * near[None, :]
    turn = tl.where((gx < 0.0) | ((gx == 0.0) & (gy < 0.0)), -1.0, 1.0)
    gx, gy = gx * turn, gy * turn
    bins = tl.zeros((16, 16), tl.int32)
    for k in tl.static_range(1, 9):
        bins += (gx * COSINES[k] >= gy * SINES[k]).to(tl.int32)
    number = tl.arange(0, 16)[:, None, None]  # nine bins, padded
    histogram = tl.zeros((16, 2, 2), tl.float32)
    for k in tl.static_range(9):
        counted = tl.reshape(tl.where(bins == k, weight, 0.0), (2, 8, 2, 8))
        total = tl.sum(tl.sum(counted, 3), 1)
        histogram = tl.where(number == k, total[None, :, :], histogram)
    norm = tl.sqrt(tl.sum(histogram * histogram, 0))
    histogram = histogram / tl.maximum(norm, 1e-12)[None, :, :]
    cell = tl.arange(0, 2)
    place = out + ((b * patches + patch) * channels + c) * 36
    place += number * 4 + cell[None, :, None] * 2 + cell[None, None, :]
    tl.store(place, histogram, mask=(number < 9) & (cell[None, :, None] < 2) & (cell[None, None, :] < 2))


@torch.library.custom_op("headrace::hog", mutates_args=())
def _hog(images: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    columns, patches = width // 16, height // 16 * (width // 16)
    out = torch.empty(batch, patches, channels * 36, dtype=torch.float32, device=images.device)
    with torch.cuda.device_of(images):
        # Without fused multiply-adds: of a sum of squares they make one in each thread with another's rounding, and
        # which of these "equal" copies reaches shared memory last nobody knows.
        _kernel[(batch * patches * channels,)](
            images,
            *images.stride(),
            out,
            columns,
            patches,
            channels,
            height,
            width,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return out


@_hog.register_fake
def _(images):
    batch, channels, height, width = images.shape
    return images.new_empty((batch, height // 16 * (width // 16), channels * 36), dtype=torch.float32)


def hog(images: Tensor) -> Tensor:
    """Arguments and result of `headrace.kernels.hog.hog`, without float64."""
    return _hog(images.detach())


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: channels-last images, as training has them."""
    for dtype in ("bf16", "fp32"):
        yield Build(
            name=dtype,
            kernel=_kernel,
            types={"images": f"*{dtype}", "out": "*fp32"},
            constants={"image_c": 1},
            aligned=("images", "image_b", "image_y", "out", "height", "width"),
            warps=1,
        )
