"""Sinkhorn in Triton: Q = diag(v) exp((scores - largest) / epsilon) diag(u) is never written before the end.

Each iteration is two passes over the scores: `_columns_kernel` sums columns, in shares of the samples that are added in
a fixed order; `_rows_kernel` sums rows. The largest score is read from the device by every program.
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
from ..shares import shares
from .reference import all_reduce, largest

ROWS, COLUMNS, STRETCH = 16, 128, 1024
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _weights(scores, row, row_stride, column, column_stride, inside, top, scale):
    place = scores + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    score = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)
    return tl.exp2((score - tl.load(top).to(tl.float32)) * scale)


@triton.jit(do_not_specialize=["samples"])
def _columns_kernel(
    scores,
    score_b,
    score_k,
    top,
    v,
    partial,
    samples,
    prototypes,
    share,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of exp(...) * v over this program's share of the samples."""
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    sums = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum(split * share + share, samples)
    for start in range(split * share, end, ROWS):
        b = start + tl.arange(0, ROWS)
        inside = (b < end)[:, None] & (k < prototypes)[None, :]
        weight = _weights(scores, b[:, None], score_b, k[None, :], score_k, inside, top, scale)
        sums += tl.sum(weight * tl.load(v + b, mask=b < end, other=0.0)[:, None], 0)
    tl.store(partial + split.to(tl.int64) * prototypes + k, sums, mask=k < prototypes)


@triton.jit
def _rows_kernel(
    scores,
    score_b,
    score_k,
    top,
    u,
    v,
    assignment,
    prototypes,
    scale,
    LAST: tl.constexpr,
    STRETCH: tl.constexpr,
):
    """v = 1 / sum of exp(...) * u over the prototypes; after the last iteration also the assignment."""
    b = tl.program_id(0)
    sums = tl.zeros((STRETCH,), tl.float32)
    for start in range(0, prototypes, STRETCH):
        k = start + tl.arange(0, STRETCH)
        weight = _weights(scores, b, score_b, k, score_k, k < prototypes, top, scale)
        sums += weight * tl.load(u + k, mask=k < prototypes, other=0.0)
    factor = 1.0 / tl.maximum(tl.sum(sums, 0), TINY)
    if LAST:
        for start in range(0, prototypes, STRETCH):
            k = start + tl.arange(0, STRETCH)
            weight = _weights(scores, b, score_b, k, score_k, k < prototypes, top, scale)
            weight = weight * tl.load(u + k, mask=k < prototypes, other=0.0) * factor
            tl.store(assignment + b.to(tl.int64) * prototypes + k, weight, mask=k < prototypes)
    else:
        tl.store(v + b, factor)


@custom("sinkhorn_columns")
def _column_sums(scores: Tensor, top: Tensor, v: Tensor, epsilon: float) -> Tensor:
    """(K,) float32: this rank's part of the columns' sums."""
    samples, prototypes = scores.shape
    blocks = triton.cdiv(prototypes, COLUMNS)
    splits, share = shares(blocks, samples, ROWS, scores.device)
    partial = torch.empty(splits, prototypes, dtype=torch.float32, device=scores.device)
    with torch.cuda.device_of(scores):
        _columns_kernel[(blocks, splits)](
            scores,
            *scores.stride(),
            top,
            v,
            partial,
            samples,
            prototypes,
            share,
            1 / (epsilon * math.log(2)),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
        )
    return partial.sum(0)


@_column_sums.register_fake
def _(scores, top, v, epsilon):
    return scores.new_empty(scores.shape[1], dtype=torch.float32)


@custom("sinkhorn_rows")
def _rows(scores: Tensor, top: Tensor, u: Tensor, epsilon: float, last: bool) -> Tensor:
    """The rows' factors v (B,) float32, or, after the last iteration, the assignments (B, K) float32."""
    samples, prototypes = scores.shape
    shape = (samples, prototypes) if last else (samples,)
    result = torch.empty(shape, dtype=torch.float32, device=scores.device)
    with torch.cuda.device_of(scores):
        _rows_kernel[(samples,)](
            scores,
            *scores.stride(),
            top,
            u,
            None if last else result,
            result if last else None,
            prototypes,
            1 / (epsilon * math.log(2)),
            LAST=last,
            STRETCH=STRETCH,
        )
    return result


@_rows.register_fake
def _(scores, top, u, epsilon, last):
    return scores.new_empty(scores.shape if last else scores.shape[:1], dtype=torch.float32)


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Arguments and result of `headrace.kernels.sinkhorn.sinkhorn`, without float64."""
    top = largest(scores)
    result = torch.ones(scores.shape[0], dtype=torch.float32, device=scores.device)
    for iteration in range(iterations):
        u = all_reduce(_column_sums(scores, top, result, epsilon)).clamp(min=TINY.value).reciprocal()
        result = _rows(scores, top, u, epsilon, iteration == iterations - 1)
    return result


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles."""
    for dtype in ("fp32", "bf16"):
        types = {"scores": f"*{dtype}", "top": f"*{dtype}", "scale": "fp32"}
        types |= dict.fromkeys(("u", "v", "partial", "assignment"), "*fp32")
        builds = {
            "columns": (_columns_kernel, {"ROWS": ROWS, "COLUMNS": COLUMNS}),
            "rows": (_rows_kernel, {"LAST": False, "STRETCH": STRETCH, "assignment": None}),
            "assignment": (_rows_kernel, {"LAST": True, "STRETCH": STRETCH, "v": None}),
        }
        for name, (kernel, constants) in builds.items():
            yield Build(
                name=f"{name} {dtype}",
                kernel=kernel,
                types={key: types[key] for key in kernel.arg_names if key in types and key not in constants},
                constants={"score_k": 1, **constants},
                aligned=("scores", "score_b", *(name for name in ("prototypes", "share") if name in kernel.arg_names)),
            )
