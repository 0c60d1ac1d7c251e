"""SIGReg: how far the samples' projections are from standard normal ones, by their characteristic function.

    C_vs(t) + i S_vs(t) = mean over n of exp(i t y_vns)                     over the samples of all ranks
    T_vs   = N  sum over k of  w_k ((C_vs(t_k) - phi(t_k))^2 + S_vs(t_k)^2),   phi(t) = exp(-t^2 / 2)
    loss   = mean of T over views v and slices s

t_k = k t_max / (points - 1) for k = 0 .. points - 1, and w_k = 2 phi(t_k) t_max / (points - 1), half of it at both
ends: the trapezoidal rule for Epps and Pulley's integral over [-t_max, t_max]. At t = 0 the two functions agree, so
that term is 0 and left out.

Only the moments C and S couple samples, so they are what crosses the network: 2 V S (points - 1) numbers however many
samples there are. `triton_impl.py` finds them, and their gradient, with one sine and cosine at a time in registers;
`reference.py` builds the V x N x S x points table of angles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def sigreg(projections: Tensor, *, points: int = 17, t_max: float = 3.0, impl: Choice | None = None) -> Tensor:
    """Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero and LeCun, arXiv 2511.08544).

    Call it on every rank of the default process group, where there is one: the statistic is that of all ranks' samples,
    and every rank returns the same loss. Its gradient is scaled so that averaging over ranks, which
    DistributedDataParallel does, gives that of one process with all samples.

    Args:
        projections: (V, N, S), for each of V views this rank's N samples along S directions of unit length, the same on
            all ranks; as many samples on every rank; any floating dtype (float64: reference only), any strides.
        points: nodes of the integral, with the one at 0; at least 2.
        t_max: the last node, positive.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        A float32 scalar (float64 for float64 projections). For samples that are standard normal its expectation is
        ``sum w_k (1 - phi(t_k)^2)``, a number of order one; for others it grows like N.

    Raises:
        UserError: arguments that make no sense, or an implementation that cannot run them.
    """
    if projections.dim() != 3 or not projections.is_floating_point() or not projections.numel():
        raise UserError(
            f"sigreg: projections are {projections.dtype} {tuple(projections.shape)}, they must be floating (V, N, S), "
            "none of them 0"
        )
    if points < 2 or t_max <= 0:
        raise UserError(f"sigreg: points must be at least 2 and t_max positive, not {points}, {t_max}")
    return OPERATOR(projections, points=points, t_max=t_max, impl=impl)


def _shape_class(projections: Tensor, *, points: int, **options) -> ShapeClass:
    return projections.device.type, projections.dtype, points


def _cost(projections: Tensor, *, points: int, **options) -> Cost:
    """Projections are read by both passes and their gradient is written; a sine and a cosine count as one each."""
    once, angles = projections.numel() * projections.element_size(), projections.numel() * (points - 1)
    return Cost(bytes=3 * once, flops=11 * angles, forward_bytes=once, forward_flops=5 * angles)


def _triton_supports(device: str, dtype: torch.dtype, points: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the projections are {dtype}"
    if points > 65:
        return f"{points} points are more than the 65 that one program holds"
    return None


OPERATOR = Operator(
    name="sigreg",
    doc="distance of projections from a standard normal distribution",
    reference=reference.sigreg,
    shape_class=_shape_class,
    size_names=("points",),
    gradients=("projections",),
    cases=cases.CASES,
    cost=_cost,
    fast=(Implementation("triton", f"{__name__}.triton_impl:sigreg", _triton_supports),),
)
