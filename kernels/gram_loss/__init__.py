"""Gram loss: which patches of an image resemble each other is what another encoder says.

    x, t   = student and teacher patches of unit length
    S_ij   = x_i . x_j,   T_ij = t_i . t_j                       of each image; without negatives: max(S, 0), max(T, 0)
    loss   = mean over images and pairs (i, j) of (S_ij - T_ij)^2

The difference is symmetric, so its product with the patches is the whole gradient: what finds the loss of some rows
finds their gradient too. `reference.py` builds both matrices of each image; `tiled.py` some rows of them at a time, and
`triton_impl.py` one tile, so that nothing of N x N is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def gram_loss(student: Tensor, teacher: Tensor, *, negatives: bool = True, impl: Choice | None = None) -> Tensor:
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4.2, as a mean over entries).

    Args:
        student: (B, N, D) patches of B images; float32, bfloat16, float16, or float64; any strides. For similarities
            between all patches of a batch give (1, B N, D).
        teacher: (B, N, D'), any floating dtype; no gradient, so detach it.
        negatives: False: negative similarities count as 0, on both sides.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        A float32 scalar (float64 for float64 students); 0 for a batch of none. The gradient flows to `student` alone.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise UserError(
            f"gram_loss: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (images, patches, "
            "width) with as many images and patches"
        )
    if not student.is_floating_point() or not teacher.is_floating_point():
        raise UserError(f"gram_loss: patches are floating, not {student.dtype}, {teacher.dtype}")
    if teacher.requires_grad and torch.is_grad_enabled():
        raise UserError("gram_loss: teacher gets no gradient but requires one; detach it")
    return OPERATOR(student, teacher, negatives=negatives, impl=impl)


def _shape_class(student: Tensor, teacher: Tensor, **options) -> ShapeClass:
    return student.device.type, student.dtype, student.shape[2], teacher.shape[2]


def _cost(student: Tensor, teacher: Tensor, **options) -> Cost:
    """Both are read, and the student's gradient written; products of each pair, and of the difference with patches."""
    own, other = (x.numel() * x.element_size() for x in (student, teacher))
    pairs = student.shape[0] * student.shape[1] ** 2
    forward = 2 * pairs * (student.shape[2] + teacher.shape[2])
    return Cost(
        bytes=2 * own + other,
        flops=forward + 2 * pairs * student.shape[2],
        forward_bytes=own + other,
        forward_flops=forward,
    )


def _triton_supports(device: str, dtype: torch.dtype, width: int, teachers: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the student is {dtype}"
    return None


OPERATOR = Operator(
    name="gram_loss",
    doc="distance between two encoders' similarities of the patches of an image",
    reference=reference.gram_loss,
    shape_class=_shape_class,
    size_names=("width", "teacher's width"),
    gradients=("student",),
    cases=cases.CASES,
    cost=_cost,
    fast=(
        Implementation("triton", f"{__name__}.triton_impl:gram_loss", _triton_supports),
        Implementation("tiled", f"{__name__}.tiled:gram_loss"),
    ),
    batched=("student", "teacher"),
)
