"""SIGReg in Triton: sums of cosines and sines without a table of angles.

`_moments_kernel` gives a block of slices its share of the samples; shares are added in a fixed order. `_spread_kernel`
takes the moments' gradient back to every projection. What stands between them, the sum over ranks and the statistic of
a few thousand numbers, is the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom
from ..recompute import no_second_gradient
from ..shares import shares
from .reference import nodes, statistic

SLICES, SAMPLES = 16, 8  # a block; with 16 points each of 128 threads holds 16 angles


@triton.jit
def _block(projections, view, stride_v, n, stride_n, s, stride_s, inside):
    # 64 bit: 8 views of 65 536 samples along 4 096 directions are more than an int32 can count.
    place = view.to(tl.int64) * stride_v + n.to(tl.int64)[:, None] * stride_n + s.to(tl.int64)[None, :] * stride_s
    return tl.load(projections + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["samples", "slices", "share"])
def _moments_kernel(
    projections, stride_v, stride_n, stride_s, nodes, partial, samples, slices, share,
    POINTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """partial (splits, 2, V, S, K): sums over this program's share of the samples."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    split, view, views = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    k = tl.arange(0, BLOCK_K)
    t = tl.load(nodes + k, mask=k < POINTS, other=0.0)
    cosines = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    sines = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    end = tl.minimum(split * share + share, samples)
    for start in range(split * share, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (n < end)[:, None] & (s < slices)[None, :]
        y = _block(projections, view, stride_v, n, stride_n, s, stride_s, inside)
        angle = y[:, :, None] * t[None, None, :]
        cosines += tl.sum(tl.where(inside[:, :, None], tl.cos(angle), 0.0), 0)
        sines += tl.sum(tl.sin(angle), 0)  # 0 outside
    row = split.to(tl.int64) * 2 * views + view
    place = (row * slices + s)[:, None] * POINTS + k[None, :]
    inside = (s < slices)[:, None] & (k < POINTS)[None, :]
    tl.store(partial + place, cosines, mask=inside)
    tl.store(partial + place + views.to(tl.int64) * slices * POINTS, sines, mask=inside)


@triton.jit(do_not_specialize=["samples", "slices"])
def _spread_kernel(
    projections, stride_v, stride_n, stride_s, nodes, of_moments, gradient, samples, slices,
    POINTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gradient (V, N, S) = sum over k of t_k (cos(t_k y) of_sines - sin(t_k y) of_cosines)."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    view, views = tl.program_id(2), tl.num_programs(2)
    k = tl.arange(0, BLOCK_K)
    t = tl.load(nodes + k, mask=k < POINTS, other=0.0)
    inside = (n < samples)[:, None] & (s < slices)[None, :]
    y = _block(projections, view, stride_v, n, stride_n, s, stride_s, inside)
    place = (view.to(tl.int64) * slices + s)[:, None] * POINTS + k[None, :]
    known = (s < slices)[:, None] & (k < POINTS)[None, :]
    # Nodes are multiplied in here: a product that is the sum's own term becomes one instruction with the addition of
    # what another thread has, and threads that hold the same sum differ in its last bit.
    of_cosines = t[None, :] * tl.load(of_moments + place, mask=known, other=0.0)
    of_sines = t[None, :] * tl.load(of_moments + place + views.to(tl.int64) * slices * POINTS, mask=known, other=0.0)
    angle = y[:, :, None] * t[None, None, :]
    slope = tl.cos(angle) * of_sines[None, :, :] - tl.sin(angle) * of_cosines[None, :, :]
    total = tl.sum(slope, 2)
    place = (view.to(tl.int64) * samples + n)[:, None] * slices + s[None, :]
    tl.store(gradient + place, total.to(gradient.dtype.element_ty), mask=inside)


def _blocks(points: int) -> dict[str, int]:
    return {"POINTS": points, "BLOCK_N": SAMPLES, "BLOCK_S": SLICES, "BLOCK_K": triton.next_power_of_2(points)}


@custom("sigreg_moments")
def _moments(projections: Tensor, t: Tensor) -> Tensor:
    """(2, V, S, K) float32: this rank's sums of cosines and of sines at the nodes `t` (K,)."""
    views, samples, slices = projections.shape
    blocks = triton.cdiv(slices, SLICES)
    splits, share = shares(blocks * views, samples, SAMPLES, projections.device)
    partial = projections.new_empty(splits, 2, views, slices, len(t), dtype=torch.float32)
    with torch.cuda.device_of(projections):
        _moments_kernel[(blocks, splits, views)](
            projections, *projections.stride(), t, partial, samples, slices, share, **_blocks(len(t))
        )
    return partial.sum(0)


@_moments.register_fake
def _(projections, t):
    views, _, slices = projections.shape
    return projections.new_empty(2, views, slices, len(t), dtype=torch.float32)


@custom("sigreg_spread")
def _spread(projections: Tensor, t: Tensor, of_moments: Tensor) -> Tensor:
    """The projections' gradient (V, N, S), of the moments' (2, V, S, K)."""
    views, samples, slices = projections.shape
    gradient = projections.new_empty(projections.shape)
    of_moments = of_moments.contiguous()
    with torch.cuda.device_of(projections):
        _spread_kernel[(triton.cdiv(slices, SLICES), triton.cdiv(samples, SAMPLES), views)](
            projections, *projections.stride(), t, of_moments, gradient, samples, slices, **_blocks(len(t))
        )
    return gradient


@_spread.register_fake
def _(projections, t, of_moments):
    return projections.new_empty(projections.shape)


_spread.register_autograd(no_second_gradient("sigreg"))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, of_moments):
    return _spread(*ctx.saved_tensors, of_moments), None


_moments.register_autograd(_differentiate, setup_context=_save)


def sigreg(projections: Tensor, *, points: int, t_max: float) -> Tensor:
    """Arguments and result of `headrace.kernels.sigreg.sigreg`, without float64."""
    t = nodes(points, t_max, dtype=torch.float32, device=projections.device)
    return statistic(_moments(projections, t), projections.shape[1], t)


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: the kernels as training launches them."""
    for dtype in ("fp32", "bf16"):
        names = {"projections": f"*{dtype}", "nodes": "*fp32", "partial": "*fp32", "of_moments": "*fp32"}
        types = {**names, "gradient": f"*{dtype}"}
        aligned = ("projections", "stride_v", "stride_n", "nodes", "partial", "of_moments", "gradient")
        for name, kernel in (("moments", _moments_kernel), ("spread", _spread_kernel)):
            yield Build(
                name=f"{name} {dtype}",
                kernel=kernel,
                types={key: types[key] for key in kernel.arg_names if key in types},
                constants={"stride_s": 1, **_blocks(16)},
                aligned=tuple(key for key in aligned if key in kernel.arg_names),
            )
