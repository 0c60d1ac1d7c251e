"""Prototype cross-entropy: each crop's student predicts what the teacher says of the other crops.

    p_t    = softmax((teacher_t - center) / teacher_temperature), or teacher_t itself where it is a distribution
    loss   = mean over images, teacher views t and crops v != t of  - p_t . log softmax(student_v / student_temperature)

The T teacher views are the first T of the V crops. `pairs` may also be "same", crops with themselves alone (masked
patches, iBOT), or "all". The sum over t comes first: crop v costs - (sum of its p_t) . log p_v, so every logit is read
once whatever T is. `triton_impl.py` does so, keeps two numbers a row and writes the gradient from the logits again;
`tiled.py` does the same in plain PyTorch, some rows at a time; `reference.py` goes through the pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference

Pairs = Literal["crossed", "same", "all"]


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float | None = None,
    pairs: Pairs = "crossed",
    impl: Choice | None = None,
) -> Tensor:
    """Soft-target cross-entropy over prototypes: DINO (Caron et al., arXiv 2104.14294, section 3.1); with assignments
    as `teacher` and no teacher temperature, SwAV (arXiv 2006.09882, equation 2, without its factor of V - 1); of masked
    patches as rows, with "same" pairs and weights, iBOT (arXiv 2111.07832, equation 2).

    Args:
        student: (V, B, K) logits of V crops; float32, bfloat16, float16, or float64 (reference only); any strides.
        teacher: (T, B, K), T <= V, any floating dtype: logits, or distributions; no gradient, so detach it. Teacher
            view t and crop t are the same pixels and are not compared.
        center: (K,), subtracted from teacher logits; None subtracts nothing.
        weights: (B,) float32 or float64, no gradient: the images' losses are summed with these instead of averaged.
        student_temperature: what student logits are divided by, positive.
        teacher_temperature: what teacher logits are divided by, positive; None: `teacher` holds distributions.
        pairs: "crossed": all but a view with itself; "same": a view with itself alone, T = V; "all".
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        The mean over B images and T (V - 1), V or T V pairs, a float32 scalar (float64 for float64 students); 0 for a
        batch of none. The gradient flows to `student` alone.

    Raises:
        UserError: shapes, dtypes or temperatures that do not fit together, or an implementation that cannot run them.
    """
    if student.dim() != 3 or teacher.dim() != 3 or teacher.shape[1:] != student.shape[1:]:
        raise UserError(
            f"prototype_ce: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (views, B, K) "
            "with the same B and K"
        )
    if pairs == "same":
        if len(teacher) != len(student) or not len(student):
            raise UserError(
                f"prototype_ce: same pairs need as many crops as teachers, not {len(student)}, {len(teacher)}"
            )
    elif pairs == "all":
        if not len(teacher) or not len(student):
            raise UserError(f"prototype_ce: {len(teacher)} teacher views and {len(student)} crops make no pairs")
    elif pairs != "crossed":
        raise UserError(f"prototype_ce: pairs are crossed, same or all, not {pairs!r}")
    elif len(student) < 2 or not 1 <= len(teacher) <= len(student):
        raise UserError(
            f"prototype_ce: {len(teacher)} teacher views and {len(student)} crops make no pairs; give two crops or "
            "more, the first of them also to the teacher"
        )
    if center is not None and (center.shape != student.shape[2:] or teacher_temperature is None):
        raise UserError(
            f"prototype_ce: center {tuple(center.shape)} needs the shape {tuple(student.shape[2:])} and a "
            "teacher_temperature; a distribution has no center"
        )
    if student_temperature <= 0 or (teacher_temperature is not None and teacher_temperature <= 0):
        raise UserError(
            f"prototype_ce: temperatures must be positive, not {student_temperature} and {teacher_temperature}"
        )
    if weights is not None and weights.shape != student.shape[1:2]:
        raise UserError(f"prototype_ce: weights {tuple(weights.shape)} need the shape {tuple(student.shape[1:2])}")
    if teacher.requires_grad and torch.is_grad_enabled():
        raise UserError("prototype_ce: teacher gets no gradient but requires one; detach it")
    return OPERATOR(
        student,
        teacher,
        center,
        weights,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        pairs=pairs,
        impl=impl,
    )


def pair_count(crops: int, teachers: int, pairs: Pairs) -> int:
    """How many pairs of an image are compared."""
    return {"crossed": teachers * (crops - 1), "same": crops, "all": teachers * crops}[pairs]


def _shape_class(student: Tensor, teacher: Tensor, *optional: Tensor | None, **options) -> ShapeClass:
    return student.device.type, student.dtype, student.shape[0], teacher.shape[0]


def _cost(student: Tensor, teacher: Tensor, *optional: Tensor | None, **options) -> Cost:
    """Both are read once forward; an exponential and 8 more operations a logit each way."""
    read = student.numel() * student.element_size() + teacher.numel() * teacher.element_size()
    flops = 9 * (student.numel() + teacher.numel())
    return Cost(
        bytes=read + student.numel() * student.element_size(),
        flops=2 * flops,
        forward_bytes=read,
        forward_flops=flops,
    )


def _triton_supports(device: str, dtype: torch.dtype, crops: int, teachers: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the student is {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter truncates to bfloat16 where a GPU rounds"
    if teachers > 32:
        return f"{teachers} teacher views are more than the 32 that one program goes through"
    return None


OPERATOR = Operator(
    name="prototype_ce",
    doc="soft-target cross-entropy of all crops over many prototypes",
    reference=reference.prototype_ce,
    shape_class=_shape_class,
    size_names=("crops", "teachers"),
    gradients=("student",),
    cases=cases.CASES,
    cost=_cost,
    fast=(
        Implementation("triton", f"{__name__}.triton_impl:prototype_ce", _triton_supports),
        Implementation("tiled", f"{__name__}.tiled:prototype_ce"),
    ),
)
