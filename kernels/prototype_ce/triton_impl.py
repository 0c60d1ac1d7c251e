"""Prototype cross-entropy in Triton: all crops of one image meet a stretch of prototypes in one tile.

1. `_teacher_kernel` finds the log-sum-exp of each teacher row, in shares of the prototypes.
2. `_student_kernel` reads everything once: per crop the largest logit m, the sum of exponentials, the mass of the
   target and the sum of target * (logit - m). Measured from m, because the loss is the difference of two large numbers
   when logits are large. A few small sums in a fixed order make the loss of it.
3. `_gradient_kernel` writes mass * softmax - target, times a float32 factor; in float16 that factor alone would vanish.

Exponentials are powers of two (1 / temperature / ln 2 is the scale) of scaled differences of logits. The difference of
scaled ones would be off by a ten-thousandth for logits of a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..shares import shares
from . import pair_count

LN2 = math.log(2)
PAIRS = {"crossed": 0, "same": 1, "all": 2}  # as constants of the kernels
STRETCH = 1024  # prototypes of one teacher row at a time
TILE = 2048  # crops x prototypes at a time; 4096 spills on sm_90


@triton.jit
def _teacher_logits(teacher, center, center_k, k, inside, CENTER: tl.constexpr):
    logit = tl.load(teacher, mask=inside, other=0.0).to(tl.float32)
    if CENTER:
        logit -= tl.load(center + k * center_k, mask=inside, other=0.0).to(tl.float32)
    return logit


@triton.jit(do_not_specialize=["batch", "prototypes", "share"])
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
    m = tl.full((), float("-inf"), tl.float32)
    l = tl.zeros((), tl.float32)  # noqa: E741
    end = tl.minimum(split * share + share, prototypes)
    for start in range(split * share, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < end
        place = teacher + t * teacher_t + b * teacher_b + k.to(tl.int64) * teacher_k
        logit = tl.where(inside, _teacher_logits(place, center, center_k, k, inside, CENTER), float("-inf"))
        larger = tl.maximum(m, tl.max(logit, 0))
        l = l * tl.exp2((m - larger) * scale) + tl.sum(tl.exp2((logit - larger) * scale), 0)  # noqa: E741
        m = larger
    place = split.to(tl.int64) * tl.num_programs(0) + row
    tl.store(top + place, m)
    tl.store(total + place, l)


@triton.jit
def _targets(
    teacher, teacher_t, teacher_b, teacher_k, center, center_k, norm, b, batch, k, inside, scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, CROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(CROPS, BLOCK): for each crop, the sum of what the teacher says of the views that it is compared with."""
    v = tl.arange(0, CROPS)
    target = tl.zeros((CROPS, BLOCK), tl.float32)
    for t in tl.static_range(TEACHERS):
        place = teacher + t * teacher_t + b * teacher_b + k.to(tl.int64) * teacher_k
        if LOGITS:
            logit = _teacher_logits(place, center, center_k, k, inside, CENTER)
            m, log_total = tl.load(norm + t * batch + b), tl.load(norm + (TEACHERS + t) * batch + b)
            p = tl.where(inside, tl.exp2((logit - m) * scale - log_total), 0.0)
        else:
            p = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if PAIRS == 0:
            target += tl.where(v[:, None] == t, 0.0, p[None, :])
        elif PAIRS == 1:
            target += tl.where(v[:, None] == t, p[None, :], 0.0)
        else:
            target += p[None, :]
    return target


@triton.jit(do_not_specialize=["batch", "prototypes", "share", "crops"])
def _student_kernel(
    student, student_v, student_b, student_k, teacher, teacher_t, teacher_b, teacher_k, center, center_k,
    teacher_norm, top, total, mass, cross, crops, batch, prototypes, share, scale, teacher_scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, CROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    v = tl.arange(0, CROPS)
    m = tl.full((CROPS,), float("-inf"), tl.float32)
    l = tl.zeros((CROPS,), tl.float32)  # noqa: E741
    weight = tl.zeros((CROPS,), tl.float32)
    product = tl.zeros((CROPS,), tl.float32)
    end = tl.minimum(split * share + share, prototypes)
    for start in range(split * share, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < end
        target = _targets(
            teacher, teacher_t, teacher_b, teacher_k, center, center_k, teacher_norm, b, batch, k, inside,
            teacher_scale, LOGITS, CENTER, TEACHERS, PAIRS, CROPS, BLOCK,
        )  # fmt: skip
        place = student + v.to(tl.int64)[:, None] * student_v + b * student_b + k.to(tl.int64)[None, :] * student_k
        logit = tl.load(place, mask=(v < crops)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        larger = tl.maximum(m, tl.max(tl.where(inside[None, :], logit, float("-inf")), 1))
        below = tl.where(inside[None, :], (logit - larger[:, None]) * scale, 0.0)
        shift = tl.where(m == float("-inf"), 0.0, (m - larger) * scale)
        l = l * tl.exp2(shift) + tl.sum(tl.where(inside[None, :], tl.exp2(below), 0.0), 1)  # noqa: E741
        product += weight * shift + tl.sum(target * below, 1)
        weight += tl.sum(target, 1)
        m = larger
    place = (split.to(tl.int64) * crops + v) * batch + b
    tl.store(top + place, m, mask=v < crops)
    tl.store(total + place, l, mask=v < crops)
    tl.store(mass + place, weight, mask=v < crops)
    tl.store(cross + place, product, mask=v < crops)


@triton.jit(do_not_specialize=["batch", "prototypes", "crops"])
def _gradient_kernel(
    student, student_v, student_b, student_k, teacher, teacher_t, teacher_b, teacher_k, center, center_k,
    teacher_norm, norm, mass, weights, factor, gradient, crops, batch, prototypes, scale, teacher_scale,
    LOGITS: tl.constexpr, CENTER: tl.constexpr, TEACHERS: tl.constexpr, PAIRS: tl.constexpr, WEIGHTS: tl.constexpr,
    CROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    v = tl.arange(0, CROPS)
    inside = k < prototypes
    written = (v < crops)[:, None] & inside[None, :]
    target = _targets(
        teacher, teacher_t, teacher_b, teacher_k, center, center_k, teacher_norm, b, batch, k, inside, teacher_scale,
        LOGITS, CENTER, TEACHERS, PAIRS, CROPS, BLOCK,
    )  # fmt: skip
    place = student + v.to(tl.int64)[:, None] * student_v + b * student_b + k.to(tl.int64)[None, :] * student_k
    logit = tl.load(place, mask=written, other=0.0).to(tl.float32)
    m = tl.load(norm + v * batch + b, mask=v < crops, other=0.0)
    log_total = tl.load(norm + (crops + v) * batch + b, mask=v < crops, other=0.0)
    weight = tl.load(mass + v * batch + b, mask=v < crops, other=0.0)
    share = tl.load(factor)
    if WEIGHTS:
        share *= tl.load(weights + b)
    result = (weight[:, None] * tl.exp2((logit - m[:, None]) * scale - log_total[:, None]) - target) * share
    place = gradient + (v.to(tl.int64)[:, None] * batch + b) * prototypes + k[None, :]
    tl.store(place, result.to(gradient.dtype.element_ty), mask=written)


def _norm(top: Tensor, total: Tensor, scale: float) -> Tensor:
    """(2, ...): the largest logit, and log2 of the sum of exponentials measured from it, over all shares."""
    largest = top.amax(0)
    return torch.stack([largest, (total * ((top - largest) * scale).exp2()).sum(0).log2()])


def _scales(student_temperature: float, teacher_temperature: float | None) -> tuple[float, float]:
    return 1 / (student_temperature * LN2), 1 / ((teacher_temperature or 1.0) * LN2)


def _teacher_arguments(teacher: Tensor, center: Tensor | None) -> tuple:
    return teacher, *teacher.stride(), center, 0 if center is None else center.stride(0)


def _tile(crops: int) -> dict[str, int]:
    padded = triton.next_power_of_2(crops)
    return {"CROPS": padded, "BLOCK": TILE // padded}


@torch.library.custom_op("headrace::prototype_ce", mutates_args=())
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
    teachers, tile, logits = len(teacher), _tile(crops), teacher_temperature is not None
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
        splits, share = shares(batch, prototypes, tile["BLOCK"], student.device)
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
            num_warps=8,
            enable_fp_fusion=False,  # as in hog: copies of a sum of products would differ in their rounding
            **tile,
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


@torch.library.custom_op("headrace::prototype_ce_backward", mutates_args=())
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
    tile = _tile(crops)
    scale, teacher_scale = _scales(student_temperature, teacher_temperature)
    gradient = student.new_empty(student.shape)
    with torch.cuda.device_of(student):
        _gradient_kernel[(batch, triton.cdiv(prototypes, tile["BLOCK"]))](
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
            num_warps=8,
            **tile,
        )
    return gradient


@_backward.register_fake
def _(student, teacher, center, norm, mass, teacher_norm, weights, factor, *options):
    return student.new_empty(student.shape)


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
    """What the ahead-of-time gate compiles: DINO with ten crops in two precisions, SwAV with eight in one, patches."""
    for name, crops, dtype, logits, pairs in (
        ("dino", 10, "bf16", True, "crossed"),
        ("dino", 10, "fp32", True, "crossed"),
        ("swav", 8, "bf16", False, "crossed"),
        ("patches", 1, "bf16", True, "same"),
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
            "TEACHERS": min(2, crops),
            "PAIRS": PAIRS[pairs],
            "WEIGHTS": pairs == "same",
            "student_k": 1,
            "teacher_k": 1,
            "center_k": 1,
            **_tile(crops),
        }
        flags |= {} if logits else {"center": None, "center_k": 0}
        flags |= {} if pairs == "same" else {"weights": None}
        kernels = {"teacher": (_teacher_kernel, 4), "student": (_student_kernel, 8), "gradient": (_gradient_kernel, 8)}
        for part, (kernel, warps) in kernels.items():
            if part == "teacher" and not logits:
                continue
            constants = {key: value for key, value in flags.items() if key in kernel.arg_names}
            constants |= {"BLOCK": STRETCH} if part == "teacher" else {}
            strides = ("student_v", "student_b", "teacher_t", "teacher_b")
            yield Build(
                name=f"{part} {name} {dtype}",
                kernel=kernel,
                types={key: types[key] for key in kernel.arg_names if key in types and key not in constants},
                constants=constants,
                aligned=tuple(key for key in ("student", "teacher", "gradient", *strides) if key in kernel.arg_names),
                warps=warps,
            )
