"""Exponential moving average of a network's weights, in place.

    teacher <- momentum * teacher + (1 - momentum) * student

No operator with implementations: `torch._foreach_lerp_` already reads both and writes one, in a few launches for the
whole network, and that is all the traffic there is. A kernel of our own could save some only inside the optimizer's,
where the student's weights are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import UserError


@torch.no_grad()
def ema(teacher: Sequence[Tensor], student: Sequence[Tensor], *, momentum: float) -> None:
    """Move the teacher towards the student (Mean Teacher, Tarvainen and Valpola, arXiv 1703.01780, equation 3).

    Args:
        teacher: tensors to update, float32 or float64: steps of 1 - momentum vanish in anything coarser.
        student: as many tensors of the same shapes and dtypes.
        momentum: in [0, 1]; 0 copies the student exactly, 1 changes nothing.

    Raises:
        UserError: lists that do not match, a teacher of another dtype, or a momentum outside of [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise UserError(f"ema: momentum must be between 0 and 1, not {momentum}")
    if [(t.shape, t.dtype) for t in teacher] != [(s.shape, s.dtype) for s in student]:
        raise UserError("ema: teacher and student differ in number, shape or dtype of their tensors")
    coarse = [t.dtype for t in teacher if t.dtype not in (torch.float32, torch.float64)]
    if coarse:
        raise UserError(f"ema: the teacher has {coarse[0]} weights, too coarse for small steps; keep it in float32")
    if teacher:
        torch._foreach_lerp_(list(teacher), list(student), 1 - momentum)
