"""Losses of single samples, where the operators of `headrace.kernels` give their mean alone: `StepOutput.per_sample`.

All are without gradient, in float32 or better, and read no value on the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.info_nce.reference import similarities
from ..kernels.patch_loss.reference import patchify

_ELEMENTS = 1 << 24  # of a part of the matrix of similarities, which is never there as a whole


@torch.no_grad()
def hidden_mean(errors: Tensor, hidden: Tensor) -> Tensor:
    """Errors (B, L) and hidden (B, L) bool -> (B,) means over a sample's own hidden patches."""
    return torch.where(hidden, errors.float(), 0).sum(1) / hidden.sum(1).clamp(min=1)


@torch.no_grad()
def patch_errors(
    images: Tensor,
    prediction: Tensor,
    hidden: Tensor,
    *,
    patch_size: int,
    normalize: bool = True,
    absolute: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """(B,): `kernels.patch_loss` of each sample; the arguments are its. Their mean, weighted by the numbers of hidden
    patches, is the loss."""
    precision = torch.promote_types(prediction.dtype, torch.float32)
    prediction, error = prediction.to(precision), patchify(images, patch_size).to(precision)
    if error.data_ptr() == images.data_ptr():  # of a single patch, a view
        error = error.clone()
    values = error.shape[-1]
    if normalize:  # in place and without var_mean, which takes ten times as long as all of this on a CPU
        error -= error.mean(-1, keepdim=True)
        variance = torch.linalg.vector_norm(error, dim=-1, keepdim=True).square_() / (values - 1)
        torch.addcmul(prediction, error, (variance + eps).rsqrt_(), value=-1, out=error)
    else:
        error -= prediction
    norm = torch.linalg.vector_norm(error, 1 if absolute else 2, dim=-1)
    return hidden_mean((norm if absolute else norm.square_()) / values, hidden)


@torch.no_grad()
def row_losses(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None = None,
    exclude: Tensor | None = None,
    keys: Tensor | None = None,
    *,
    temperature: float,
) -> Tensor:
    """(B,): the cross-entropy of each row of `kernels.info_nce`, whose means those of `info_nce` and, with `keys` in
    the place of `positive`, of `info_nce_queue` are."""
    losses, count = [], max(1, _ELEMENTS // len(columns))
    for first in range(0, len(rows), count):
        own = [None if x is None else x[first : first + count] for x in (rows, positive, exclude, keys)]
        similarity, right = similarities(own[0], columns, *own[1:], temperature=temperature)
        losses.append(F.cross_entropy(similarity, right, reduction="none"))
    return torch.cat(losses)


@torch.no_grad()
def prototype_losses(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float | None = None,
) -> Tensor:
    """(B,): `kernels.prototype_ce` of each image, averaged over its pairs of crops; the arguments are its."""
    precision = torch.promote_types(student.dtype, torch.float32)
    target = teacher.to(precision)
    if teacher_temperature is not None:
        target = ((target if center is None else target - center) / teacher_temperature).softmax(-1)
    everything, total = target.sum(0), 0
    for crop, logits in enumerate(student):
        log_p = (logits.to(precision) / student_temperature).log_softmax(-1)
        others = everything - target[crop] if crop < len(target) else everything
        total = total - (others * log_p).sum(-1)
    return total / (len(teacher) * (len(student) - 1))


@torch.no_grad()
def prototype_row_losses(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float | None = None,
) -> Tensor:
    """(M,): the cross-entropy of logits (M, K) with what the teacher says of the same rows; see `prototype_losses`."""
    losses, count = [student.new_zeros(0, dtype=torch.float32)], max(1, _ELEMENTS // student.shape[1])
    for first in range(0, len(student), count):
        own, target = student[first : first + count], teacher[first : first + count].float()
        if teacher_temperature is not None:
            target = ((target if center is None else target - center) / teacher_temperature).softmax(-1)
        losses.append(-(target * (own.float() / student_temperature).log_softmax(-1)).sum(-1))
    return torch.cat(losses)


@torch.no_grad()
def word_losses(logits: Tensor, words: Tensor) -> Tensor:
    """(B,): the cross-entropy of logits (B K, V) against words (B, K), averaged over a sample's own."""
    return F.cross_entropy(logits, words.flatten(), reduction="none").view_as(words).mean(1)
