"""KoLeo's nearest neighbours in Triton: a block of rows meets its group block by block, and only the best are kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom

ROWS, COLUMNS, WIDTH = 32, 32, 64


@triton.jit(do_not_specialize=["group", "blocks"])
def _kernel(
    x, found, group, blocks, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    start = (tl.program_id(0) // blocks).to(tl.int64) * group  # of the group of this block of rows
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    best = tl.full((ROWS,), -4.0, tl.float32)
    nearest = tl.zeros((ROWS,), tl.int32)
    for first in range(0, group, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        similarity = tl.zeros((ROWS, COLUMNS), tl.float32)
        for channel in range(0, width, WIDTH):
            d = channel + tl.arange(0, WIDTH)
            a = tl.load(
                x + (start + row)[:, None] * width + d[None, :],
                mask=(row < group)[:, None] & (d < width)[None, :],
                other=0.0,
            )
            b = tl.load(
                x + (start + column)[None, :] * width + d[:, None],
                mask=(column < group)[None, :] & (d < width)[:, None],
                other=0.0,
            )
            similarity = tl.dot(a, b, similarity, input_precision="ieee")
        others = (column < group)[None, :] & (row[:, None] != column[None, :])
        similarity = tl.where(others, similarity, -3.0)
        top = tl.max(similarity, 1)
        place = tl.argmax(similarity, 1) + first
        nearest = tl.where(top > best, place, nearest)
        best = tl.maximum(best, top)
    tl.store(found + start + row, start + nearest, mask=row < group)


@custom("koleo_neighbours")
def neighbours(x: Tensor, group: int) -> Tensor:
    """x (N, D) float32 of unit length, contiguous -> (N,) int64: the row of each one's nearest neighbour."""
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    if len(x):
        blocks = triton.cdiv(group, ROWS)
        with torch.cuda.device_of(x):
            _kernel[(len(x) // group * blocks,)](
                x, found, group, blocks, x.shape[1], ROWS=ROWS, COLUMNS=COLUMNS, WIDTH=WIDTH, num_warps=4,
                num_stages=1,  # more of them spill registers on sm_80
            )  # fmt: skip
    return found


@neighbours.register_fake
def _(x, group):
    return x.new_empty(len(x), dtype=torch.int64)


def koleo(embeddings: Tensor, *, group: int, nearest: int = 1) -> Tensor:
    """Arguments and result of `headrace.kernels.koleo.koleo`, without float64 and of one neighbour."""
    from . import loss_of

    x = F.normalize(embeddings.float(), dim=1, eps=1e-8).contiguous()
    return loss_of(x, neighbours(x.detach(), group)[:, None])


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles."""
    yield Build(
        name="neighbours",
        kernel=_kernel,
        types={"x": "*fp32", "found": "*i64"},
        constants={"ROWS": ROWS, "COLUMNS": COLUMNS, "WIDTH": WIDTH},
        aligned=("x", "found", "width"),
        warps=4,
        stages=1,
    )
