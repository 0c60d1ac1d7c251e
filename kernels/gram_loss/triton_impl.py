"""Gram loss in Triton: a program holds some patches of an image, meets all others tile by tile, and keeps one tile.

Its rows of the gradient are its own, so they are summed up in memory without atomics, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom
from ..recompute import once
from .reference import units

ROWS, COLUMNS, WIDTH = 32, 32, 64


@triton.jit
def _similarity(x, row, column, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for channel in range(0, width, WIDTH):
        d = channel + tl.arange(0, WIDTH)
        a = tl.load(
            x + row[:, None] * width + d[None, :], mask=(row < count)[:, None] & (d < width)[None, :], other=0.0
        )
        b = tl.load(
            x + column[None, :] * width + d[:, None], mask=(column < count)[None, :] & (d < width)[:, None], other=0.0
        )
        found = tl.dot(a, b, found, input_precision="ieee")
    return found


@triton.jit(do_not_specialize=["count"])
def _kernel(
    student, teacher, losses, gradient, count, width, other_width, scale,
    NEGATIVES: tl.constexpr, GRADIENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """losses (B, programs): sums of squares; gradient (B, N, D): `scale` times the difference times the patches."""
    image = tl.program_id(1).to(tl.int64)
    student += image * count * width
    teacher += image * count * other_width
    gradient += image * count * width
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, count, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        own = _similarity(student, row, column, count, width, ROWS, COLUMNS, WIDTH)
        theirs = _similarity(teacher, row, column, count, other_width, ROWS, COLUMNS, WIDTH)
        if NEGATIVES:
            difference = own - theirs
        else:
            difference = tl.maximum(own, 0.0) - tl.maximum(theirs, 0.0)
        total += tl.sum(difference * difference, 1)  # 0 outside
        if GRADIENT:
            if not NEGATIVES:
                difference = tl.where(own > 0, difference, 0.0)
            difference *= scale
            for channel in range(0, width, WIDTH):
                d = channel + tl.arange(0, WIDTH)
                patches = tl.load(
                    student + column[:, None] * width + d[None, :],
                    mask=(column < count)[:, None] & (d < width)[None, :],
                    other=0.0,
                )
                place = gradient + row[:, None] * width + d[None, :]
                inside = (row < count)[:, None] & (d < width)[None, :]
                before = tl.load(place, mask=inside & (first > 0), other=0.0)
                tl.store(place, tl.dot(difference, patches, before, input_precision="ieee"), mask=inside)
            tl.debug_barrier()  # what one thread has stored another may load in the next turn
    tl.store(losses + image * tl.num_programs(0) + tl.program_id(0), tl.sum(total, 0))


@custom("gram_loss")
def _both(student: Tensor, teacher: Tensor, negatives: bool, wanted: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (B, N, D) or an empty tensor, of unit patches in contiguous float32."""
    images, count, width = student.shape
    gradient = torch.empty_like(student) if wanted else student.new_empty(0)
    if not images:
        return student.new_zeros(()), gradient
    programs, pairs = triton.cdiv(count, ROWS), images * count**2
    losses = student.new_empty(images, programs)
    with torch.cuda.device_of(student):
        _kernel[(programs, images)](
            student, teacher, losses, gradient, count, width, teacher.shape[2], 4 / pairs,
            NEGATIVES=negatives, GRADIENT=wanted, ROWS=ROWS, COLUMNS=COLUMNS, WIDTH=WIDTH, num_warps=4,
            num_stages=1,  # more of them spill registers on sm_80
        )  # fmt: skip
    return losses.sum() / pairs, gradient


@_both.register_fake
def _(student, teacher, negatives, wanted):
    return student.new_empty(()), torch.empty_like(student) if wanted else student.new_empty(0)


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_loss, _):
    return once(ctx.saved_tensors[0] * grad_loss, "gram_loss"), None, None, None


_both.register_autograd(_differentiate, setup_context=_save)


def gram_loss(student: Tensor, teacher: Tensor, *, negatives: bool = True) -> Tensor:
    """Arguments and result of `headrace.kernels.gram_loss.gram_loss`, without float64."""
    own, other = (x.contiguous() for x in units(student, teacher))
    return _both(own, other, negatives, own.requires_grad and torch.is_grad_enabled())[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles."""
    tensors = ("student", "teacher", "losses", "gradient")
    for name, wanted in (("both", True), ("loss", False)):
        yield Build(
            name=name,
            kernel=_kernel,
            types={**dict.fromkeys(tensors, "*fp32"), "scale": "fp32"},
            constants={"NEGATIVES": True, "GRADIENT": wanted, "ROWS": ROWS, "COLUMNS": COLUMNS, "WIDTH": WIDTH},
            aligned=(*tensors, "width", "other_width"),
            warps=4,
            stages=1,
        )
