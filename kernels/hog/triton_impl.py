"""HOG in Triton: a thread takes four columns through the eight rows of a cell, in all channels that lie side by side.

What a pixel's neighbours need is loaded once, 16 bytes at a time, and a cell's sums are the registers of two threads.
Opposite gradients share a bin, so they are turned to gx > 0, or gx = 0 and gy > 0: an angle in [0, pi). It has passed
the border at angle t when gy <= gx cot t. Summed up is the weight of what has passed each border; bins are the
differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom

THREADS = 32  # of a program
COTANGENTS = tl.constexpr(tuple(1 / math.tan(k * math.pi / 9) for k in range(1, 5)))  # of the others: their negatives
# g(i) = exp(-(i - 7.5)^2 / 128) / sum; a pixel's weight has it twice
NORM = tl.constexpr(sum(math.exp(-((i - 7.5) ** 2) / 128) for i in range(16)) ** -2)


@triton.jit
def _four(pointers):
    """Four consecutive values for each pointer, as a tuple."""
    values = tl.load(pointers[:, None] + tl.arange(0, 4)[None, :]).to(tl.float32)
    even, odd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _row(row, begins, ends, C: tl.constexpr):
    """Six columns of a row, one before each thread's four and one after them, of C channels each: a tuple. `row` points
    to the first of the four, `begins` and `ends` say where the image does, to be continued by reflection."""
    own = ()
    for i in tl.static_range(C):
        own += _four(row + 4 * i)
    before = _four(row - 4 * tl.where(begins, 0, 1))  # written so that it is known to be a multiple of 16 bytes
    after = _four(row + 4 * C * tl.where(ends, 0, 1))
    values = ()
    for c in tl.static_range(C):
        values += (tl.where(begins, own[C + c], before[4 - C + c]),)
    values += own
    for c in tl.static_range(C):
        values += (tl.where(ends, own[2 * C + c], after[c]),)
    return values


@triton.jit
def _gradient(above, here, below, WEST: tl.constexpr, C: tl.constexpr):
    """Differences first, as the reference has it: what is flat has no gradient, whatever is rounded."""
    EAST: tl.constexpr = WEST + 2 * C
    gx = (above[WEST] - above[EAST]) + 2.0 * (here[WEST] - here[EAST]) + (below[WEST] - below[EAST])
    middle = above[WEST + C] - below[WEST + C]
    gy = (above[WEST] - below[WEST]) + 2.0 * middle + (above[EAST] - below[EAST])
    return gx, gy


@triton.jit
def _counted(sums, gx, gy, weight):
    """Nine sums, and the weight in those whose border the gradient has passed."""
    gy = tl.where(gx == 0.0, tl.abs(gy), tl.where(gx < 0.0, -gy, gy))
    gx = tl.abs(gx)
    found = (sums[0] + weight,)
    for k in tl.static_range(4):
        found += (tl.where(gy <= gx * COTANGENTS[k], sums[1 + k] + weight, sums[1 + k]),)
    for k in tl.static_range(4):
        found += (tl.where(-gy >= gx * COTANGENTS[3 - k], sums[5 + k] + weight, sums[5 + k]),)
    return found


@triton.jit
def _of_cell(sums):
    """The sum of each two neighbours, which share a cell, in both."""
    pairs = tl.sum(tl.reshape(sums, (sums.shape[0] // 2, 2)), 1)
    return tl.reshape(tl.broadcast_to(pairs[:, None], (sums.shape[0] // 2, 2)), (sums.shape[0],))


@triton.jit(do_not_specialize=["blocks", "planes", "quads"])
def _kernel(
    images,
    image_b,
    image_p,
    image_y,
    out,
    blocks,
    planes,
    quads,
    height,
    C: tl.constexpr,
    THREADS: tl.constexpr,
):
    """images (B, planes, H, W, C), the last two without gaps; `quads` = W / 4; `blocks` of programs take one plane."""
    program = tl.program_id(0)
    plane = program // blocks
    b, p = (plane // planes).to(tl.int64), (plane % planes).to(tl.int64)
    count = height // 8 * quads
    number = program % blocks * THREADS + tl.arange(0, THREADS)
    inside = number < count
    number = tl.minimum(number, count - 1)
    strip, quad = number // quads, number % quads
    top, begins, ends = strip * 8, quad == 0, quad == quads - 1
    corner = images + b * image_b + quad * (4 * C)
    if C == 1:
        corner += p * image_p
    above = _row(corner + tl.abs(top - 1).to(tl.int64) * image_y, begins, ends, C)
    here = _row(corner + top.to(tl.int64) * image_y, begins, ends, C)
    bells = ()
    for j in tl.static_range(4):
        x = (quad % 4 * 4 + j).to(tl.float32) - 7.5
        bells += (tl.exp(x * x * (-1 / 128)) * NORM,)
    sums = ()
    for _ in tl.static_range(9 * C):
        sums += (tl.zeros((THREADS,), tl.float32),)
    for pair in range(4):
        for half in tl.static_range(2):
            row = pair * 2 + half
            y = top + row + 1
            below = _row(corner + tl.where(y < height, y, height - 2).to(tl.int64) * image_y, begins, ends, C)
            y = (strip % 2 * 8 + row).to(tl.float32) - 7.5
            bell = tl.exp(y * y * (-1 / 128))
            found = ()
            for c in tl.static_range(C):
                own = sums[9 * c : 9 * c + 9]
                for j in tl.static_range(4):
                    gx, gy = _gradient(above, here, below, j * C + c, C)
                    own = _counted(own, gx, gy, tl.sqrt(gx * gx + gy * gy) * (bell * bells[j]))
                found += own
            sums = found
            above, here = here, below
    patch = strip // 2 * (quads // 4) + quad // 4
    patches = (height // 16 * (quads // 4)).to(tl.int64)
    place = out + (((b * patches + patch) * planes + p) * C * 36 + strip % 2 * 2 + quad % 4 // 2)
    inside = inside & (quad % 2 == 0)
    for c in tl.static_range(C):
        passed = ()
        for k in tl.static_range(9):
            passed += (_of_cell(sums[9 * c + k]),)
        histogram = ()
        for k in tl.static_range(8):
            histogram += (passed[k] - passed[k + 1],)
        histogram += (passed[8],)
        squares = histogram[0] * histogram[0]
        for k in tl.static_range(1, 9):
            squares += histogram[k] * histogram[k]
        scale = tl.rsqrt(tl.maximum(squares, 1e-24))
        for k in tl.static_range(9):
            tl.store(place + (9 * c + k) * 4, histogram[k] * scale, mask=inside)


@custom("hog")
def _hog(images: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    patches = height // 16 * (width // 16)
    out = torch.empty(batch, patches, channels * 36, dtype=torch.float32, device=images.device)
    # Channels side by side, as training has them, or else one plane after the other.
    together = channels == 3 and images.stride(1) == 1 and images.stride(3) == 3
    if not together and images.stride(3) != 1:
        images = images.contiguous()
    planes = 1 if together else channels
    blocks = triton.cdiv(height // 8 * (width // 4), THREADS)
    with torch.cuda.device_of(images):
        _kernel[(batch * planes * blocks,)](
            images,
            *images.stride()[:3],
            out,
            blocks,
            planes,
            width // 4,
            height,
            C=channels // planes,
            THREADS=THREADS,
            num_warps=1,
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
    """What the ahead-of-time gate compiles: channels-last images, as training has them, and planes."""
    for name, dtype, channels in (("bf16", "bf16", 3), ("fp32", "fp32", 3), ("planes fp32", "fp32", 1)):
        yield Build(
            name=name,
            kernel=_kernel,
            types={"images": f"*{dtype}", "out": "*fp32"},
            constants={"C": channels, "THREADS": THREADS} | ({"image_p": 1} if channels == 3 else {}),
            aligned=("images", "image_b", "image_y", "out", "height") + (("image_p",) if channels == 1 else ()),
            warps=1,
        )
