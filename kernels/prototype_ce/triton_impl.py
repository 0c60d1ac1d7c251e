"""Prototype cross-entropy in Triton: a program takes one image's crops through a share of the prototypes.

1. `_teacher_kernel` finds the log-sum-exp of each teacher row, in shares of the prototypes.
2. `_student_kernel` reads everything once: per crop the largest logit m, the sum of exponentials, the mass of the
   target and the sum of target * (logit - m). Measured from m, because the loss is the difference of two large numbers
   when logits are large. A few small sums in a fixed order make the loss of it.
3. `_gradient_kernel` writes mass * softmax - target, times a float32 factor; in float16 that factor alone would vanish.

Exponentials are powers of two (1 / temperature / ln 2 is the scale) of scaled differences of logits. The difference of
scaled ones would be off by a ten-thousandth for logits of a thousand.

One file, although over 400 lines: the three kernels share their helpers, and the constants they are launched with and
compiled ahead of time with (`builds`) stand where they are used.
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
from ..recompute import no_second_gradient
from ..shares import shares
from . import pair_count

LN2 = math.log(2)
PAIRS = {"crossed": 0, "same": 1, "all": 2}  # as constants of the kernels
STRETCH = 1024  # prototypes of one row at a time
WRITTEN = 2048  # of a gradient, in vectors: what a program does before its first logit weighs half as much


@triton.jit
def _teacher_logits(teacher, center, center_k, k, inside, CENTER: tl.constexpr):
    logit = tl.load(teacher, mask=inside, other=0.0).to(tl.float32)
    if CENTER:
        logit -= tl.load(center + k * center_k, mask=inside, other=0.0).to(tl.float32)
    return logit


@triton.jit
def _running(m, l, logit, scale):
    """One more logit for each place: the largest so far, the sum of exponentials measured from it. With a single
    exponential: that of the larger of the two is one."""
    first = m == float("-inf")
    below = tl.where(first, 0.0, -tl.abs(logit - m) * scale)
    small = tl.exp2(below)
    l = tl.where(first, 1.0, tl.where(logit > m, l * small + 1.0, l + small))
    return tl.maximum(m, logit), l


@triton.jit
def _rescaled(sums, m, top, scale):
    """Sums measured from `m` at each place, measured from `top`; nothing where there was no logit."""
    return tl.where(m == float("-inf"), 0.0, sums * tl.exp2((m - top) * scale))


@triton.jit(do_not_specialize=["batch"])
def _teacher_kernel(
    teacher,
    teacher_t,
    teacher_b,
    teacher_k,
    center,
    center_k,
    top,
    total,
    batch,
    prototypes,
    share,
    scale,
    CENTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    t = (row // batch).to(tl.int64)
    b = (row % batch).to(tl.int64)
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    end = tl.minimum(split * share + share, prototypes)
    for start in range(split * share, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < end
        place = teacher + t * teacher_t + b * teacher_b + k.to(tl.int64) * teacher_k
        logit = _teacher_logits(place, center, center_k, k, inside, CENTER)
        larger, more = _running(m, l, logit, scale)
        m, l = tl.where(inside, larger, m), tl.where(inside, more, l)
    largest = tl.max(m, 0)
    place = split.to(tl.int64) * tl.num_programs(0) + row
    tl.store(top + place, largest)
    tl.store(total + place, tl.sum(_rescaled(l, m, largest, scale), 0))


@triton.jit
def _said(
    teacher, teacher_t, teacher_b, teacher_k, center, center_k, norm, t, b, batch, k, inside, scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr,
):  # fmt: skip
    """What view t of the teacher says of each prototype."""
    place = teacher + tl.full((), 1, tl.int64) * t * teacher_t + b * teacher_b + k.to(tl.int64) * teacher_k
    if LOGITS:
        logit = _teacher_logits(place, center, center_k, k, inside, CENTER)
        m, log_total = tl.load(norm + t * batch + b), tl.load(norm + (TEACHERS + t) * batch + b)
        p = tl.where(inside, tl.exp2((logit - m) * scale - log_total), 0.0)
    else:
        p = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return p


@triton.jit
def _target(
    teacher, teacher_t, teacher_b, teacher_k, center, center_k, norm, crop, b, batch, k, inside, scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of what the teacher says of the views that a crop is compared with; for pairs that are crossed, of all
    views for a crop that is none of the teacher's."""
    if PAIRS == 1:
        return _said(
            teacher, teacher_t, teacher_b, teacher_k, center, center_k, norm, crop, b, batch, k, inside, scale,
            LOGITS, CENTER, TEACHERS,
        )  # fmt: skip
    target = tl.zeros((BLOCK,), tl.float32)
    for t in tl.static_range(TEACHERS):
        p = _said(
            teacher, teacher_t, teacher_b, teacher_k, center, center_k, norm, t, b, batch, k, inside, scale,
            LOGITS, CENTER, TEACHERS,
        )  # fmt: skip
        target += p if PAIRS == 2 else tl.where(crop == t, 0.0, p)
    return target


@triton.jit(do_not_specialize=["batch", "crops"])
def _student_kernel(
    student, student_v, student_b, student_k, teacher, teacher_t, teacher_b, teacher_k, center, center_k,
    teacher_norm, top, total, mass, cross, crops, batch, prototypes, share, scale, teacher_scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One crop after the other: what the teacher says comes from the cache again. Sums are kept for each place of a
    stretch and put together once, at the end."""
    b = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    end = tl.minimum(split * share + share, prototypes)
    for crop in range(crops):
        row = student + tl.full((), 1, tl.int64) * crop * student_v + b * student_b
        m = tl.full((BLOCK,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK,), tl.float32)
        weight = tl.zeros((BLOCK,), tl.float32)
        product = tl.zeros((BLOCK,), tl.float32)
        for start in range(split * share, end, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < end
            target = _target(
                teacher, teacher_t, teacher_b, teacher_k, center, center_k, teacher_norm, crop, b, batch, k, inside,
                teacher_scale, LOGITS, CENTER, TEACHERS, PAIRS, BLOCK,
            )  # fmt: skip
            logit = tl.load(row + k.to(tl.int64) * student_k, mask=inside, other=0.0).to(tl.float32)
            # Measured from the larger of the two: either what came before moves or this logit.
            rise = tl.where(inside & (m > float("-inf")), (logit - m) * scale, 0.0)
            product += tl.where(rise > 0.0, -weight, target) * rise
            weight += target
            larger, more = _running(m, l, logit, scale)
            m, l = tl.where(inside, larger, m), tl.where(inside, more, l)
        largest = tl.max(m, 0)
        moved = tl.where(m == float("-inf"), 0.0, product + weight * ((m - largest) * scale))
        place = (split.to(tl.int64) * crops + crop) * batch + b
        tl.store(top + place, largest)
        tl.store(total + place, tl.sum(_rescaled(l, m, largest, scale), 0))
        tl.store(mass + place, tl.sum(weight, 0))
        tl.store(cross + place, tl.sum(moved, 0))


@triton.jit(do_not_specialize=["batch", "crops"])
def _gradient_kernel(
    student, student_v, student_b, student_k, teacher, teacher_t, teacher_b, teacher_k, center, center_k,
    teacher_norm, norm, mass, weights, factor, gradient, crops, batch, prototypes, scale, teacher_scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < prototypes
    share = tl.load(factor)
    if WEIGHTS:
        share *= tl.load(weights + b)
    # Most crops are asked about all of the teacher's views: no view has the number -1.
    every = tl.zeros((BLOCK,), tl.float32)
    if PAIRS != 1:
        every = _target(
            teacher, teacher_t, teacher_b, teacher_k, center, center_k, teacher_norm, -1, b, batch, k, inside,
            teacher_scale, LOGITS, CENTER, TEACHERS, PAIRS, BLOCK,
        )  # fmt: skip
    for crop in range(crops):
        target = every
        if PAIRS == 1 or (PAIRS == 0 and crop < TEACHERS):
            target = _target(
                teacher, teacher_t, teacher_b, teacher_k, center, center_k, teacher_norm, crop, b, batch, k, inside,
                teacher_scale, LOGITS, CENTER, TEACHERS, PAIRS, BLOCK,
            )  # fmt: skip
        place = student + tl.full((), 1, tl.int64) * crop * student_v + b * student_b
        logit = tl.load(place + k.to(tl.int64) * student_k, mask=inside, other=0.0).to(tl.float32)
        m, log_total = tl.load(norm + crop * batch + b), tl.load(norm + (crops + crop) * batch + b)
        weight = tl.load(mass + crop * batch + b)
        result = (weight * tl.exp2((logit - m) * scale - log_total) - target) * share
        place = gradient + (tl.full((), 1, tl.int64) * crop * batch + b) * prototypes + k
        tl.store(place, result.to(gradient.dtype.element_ty), mask=inside)


def _norm(top: Tensor, total: Tensor, scale: float) -> Tensor:
    """(2, ...): the largest logit, and log2 of the sum of exponentials measured from it, over all shares."""
    largest = top.amax(0)
    return torch.stack([largest, (total * ((top - largest) * scale).exp2()).sum(0).log2()])


def _scales(student_temperature: float, teacher_temperature: float | None) -> tuple[float, float]:
    return 1 / (student_temperature * LN2), 1 / ((teacher_temperature or 1.0) * LN2)


def _teacher_arguments(teacher: Tensor, center: Tensor | None) -> tuple:
    return teacher, *teacher.stride(), center, 0 if center is None else center.stride(0)


@custom("prototype_ce")
def _forward(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    weights: Tensor | None,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss (); `_norm` of students (2, V, B), mass of their targets (V, B), `_norm` of teachers (2, T, B)."""
    crops, batch, prototypes = student.shape
    teachers, logits = len(teacher), teacher_temperature is not None
    scale, teacher_scale = _scales(student_temperature, teacher_temperature)
    new = {"dtype": torch.float32, "device": student.device}
    teachers_say = _teacher_arguments(teacher, center)
    with torch.cuda.device_of(student):
        if logits and batch:
            splits, share = shares(teachers * batch, prototypes, STRETCH, student.device)
            top, total = torch.empty(splits, teachers, batch, **new), torch.empty(splits, teachers, batch, **new)
            _teacher_kernel[(teachers * batch, splits)](
                *teachers_say,
                top,
                total,
                batch,
                prototypes,
                share,
                teacher_scale,
                CENTER=center is not None,
                BLOCK=STRETCH,
                num_warps=4,
            )
            teacher_norm = _norm(top, total, teacher_scale)
        else:
            teacher_norm = torch.zeros(2, teachers, batch, **new)
        splits, share = shares(batch, prototypes, STRETCH, student.device)
        top, total, mass, cross = (torch.empty(splits, crops, batch, **new) for _ in range(4))
        _student_kernel[(batch, splits)](
            student,
            *student.stride(),
            *teachers_say,
            teacher_norm,
            top,
            total,
            mass,
            cross,
            crops,
            batch,
            prototypes,
            share,
            scale,
            teacher_scale,
            LOGITS=logits,
            CENTER=center is not None,
            TEACHERS=teachers,
            PAIRS=PAIRS[pairs],
            BLOCK=STRETCH,
            num_warps=4,
        )
    norm = _norm(top, total, scale)
    losses = cross + mass * ((top - norm[0]) * scale - norm[1])
    total = losses.sum() / max(batch, 1) if weights is None else losses.sum((0, 1)) @ weights
    return -LN2 * total / pair_count(crops, teachers, pairs), norm, mass.sum(0), teacher_norm


@_forward.register_fake
def _(student, teacher, center, weights, student_temperature, teacher_temperature, pairs):
    new = {"dtype": torch.float32, "device": student.device}
    norm, mass = torch.empty(2, *student.shape[:2], **new), torch.empty(student.shape[:2], **new)
    return torch.empty((), **new), norm, mass, torch.empty(2, *teacher.shape[:2], **new)


@custom("prototype_ce_backward")
def _backward(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    norm: Tensor,
    mass: Tensor,
    teacher_norm: Tensor,
    weights: Tensor | None,
    factor: Tensor,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: str,
) -> Tensor:
    """The gradient of `student`; `factor`, a float32 scalar, is that of one crop's logit over the temperature."""
    crops, batch, prototypes = student.shape
    scale, teacher_scale = _scales(student_temperature, teacher_temperature)
    gradient = student.new_empty(student.shape)
    stretch = WRITTEN if prototypes % 16 == 0 else STRETCH
    with torch.cuda.device_of(student):
        _gradient_kernel[(batch, triton.cdiv(prototypes, stretch))](
            student,
            *student.stride(),
            *_teacher_arguments(teacher, center),
            teacher_norm,
            norm,
            mass,
            weights,
            factor,
            gradient,
            crops,
            batch,
            prototypes,
            scale,
            teacher_scale,
            LOGITS=teacher_temperature is not None,
            CENTER=center is not None,
            TEACHERS=len(teacher),
            PAIRS=PAIRS[pairs],
            WEIGHTS=weights is not None,
            BLOCK=stretch,
            num_warps=4,
        )
    return gradient


@_backward.register_fake
def _(student, teacher, center, norm, mass, teacher_norm, weights, factor, *options):
    return student.new_empty(student.shape)


_backward.register_autograd(no_second_gradient("prototype_ce"))


def _save(ctx, inputs, output):
    student, teacher, center, weights, *ctx.options = inputs
    ctx.save_for_backward(student, teacher, center, *output[1:], weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss, *unused):
    student, teacher = ctx.saved_tensors[:2]
    (crops, batch, _), weights = student.shape, ctx.saved_tensors[-1]
    temperature, _, pairs = ctx.options
    images = max(batch, 1) if weights is None else 1
    factor = grad_loss / (pair_count(crops, len(teacher), pairs) * images * temperature)
    return _backward(*ctx.saved_tensors, factor, *ctx.options), *[None] * 6


_forward.register_autograd(_differentiate, setup_context=_save)


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    weights: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float | None,
    pairs: str = "crossed",
) -> Tensor:
    """Arguments and result of `headrace.kernels.prototype_ce.prototype_ce`, without float64."""
    weights = None if weights is None else weights.float().contiguous()
    return _forward(student, teacher, center, weights, student_temperature, teacher_temperature, pairs)[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: DINO in two precisions, SwAV in one, patches."""
    for name, dtype, logits, pairs in (
        ("dino", "bf16", True, "crossed"),
        ("dino", "fp32", True, "crossed"),
        ("swav", "bf16", False, "crossed"),
        ("patches", "bf16", True, "same"),
    ):
        figures = ("teacher_norm", "top", "total", "mass", "cross", "norm", "weights", "factor")
        types = {
            **dict.fromkeys(("student", "teacher", "gradient"), f"*{dtype}"),
            **dict.fromkeys(figures, "*fp32"),
            **dict.fromkeys(("scale", "teacher_scale"), "fp32"),
            "center": "*fp32",
        }
        flags = {
            "LOGITS": logits,
            "CENTER": logits,
            "TEACHERS": 1 if pairs == "same" else 2,
            "PAIRS": PAIRS[pairs],
            "WEIGHTS": pairs == "same",
            "student_k": 1,
            "teacher_k": 1,
            "center_k": 1,
            "BLOCK": STRETCH,
        }
        flags |= {} if logits else {"center": None, "center_k": 0}
        flags |= {} if pairs == "same" else {"weights": None}
        kernels = {"teacher": _teacher_kernel, "student": _student_kernel, "gradient": _gradient_kernel}
        for part, kernel in kernels.items():
            if part == "teacher" and not logits:
                continue
            constants = {key: value for key, value in flags.items() if key in kernel.arg_names}
            constants |= {"BLOCK": WRITTEN} if part == "gradient" and logits else {}
            sizes = ("student_v", "student_b", "teacher_t", "teacher_b", "share") + ("prototypes",) * logits
            yield Build(
                name=f"{part} {name} {dtype}",
                kernel=kernel,
                types={key: types[key] for key in kernel.arg_names if key in types and key not in constants},
                constants=constants,
                aligned=tuple(key for key in ("student", "teacher", "gradient", *sizes) if key in kernel.arg_names),
                warps=4,
            )
