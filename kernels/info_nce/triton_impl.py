"""InfoNCE in Triton: a flash-attention pass over the columns, in which values are the keys themselves.

1. `_pass_kernel`: a block of rows meets one share of the columns and keeps, for each row, the largest logit, the sum of
   exponentials and the sum of columns weighted by them; the positive is left out.
2. `_merge_kernel` puts the shares together in a fixed order and adds the positive last, so that a loss near 0 and its
   gradient come from what is left to learn, not from the difference of two numbers near 1.
3. `_columns_kernel`, only where columns want a gradient, meets all rows again with the log-sum-exp at hand.

Logits are in powers of two (temperature over ln 2), which saves a multiplication an exponential.
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

LN2 = math.log(2)
SPLITS = 16  # shares of the columns that are put together at a time
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ALIGNED = ("rows", "row_b", "columns", "column_n", "targets", "target_b", "top", "total", "weighted", "gradient")


@triton.jit
def _load(matrix, index, stride, stride_d, count, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    # 64 bit: 49 positions of 350 000 images, 128 values each, are more than an int32 can count.
    offset = index.to(tl.int64)[:, None] * stride + d[None, :] * stride_d
    return tl.load(matrix + offset, mask=(index < count)[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit(do_not_specialize=["count", "candidates", "share"])
def _pass_kernel(
    rows, row_b, row_d, columns, column_n, column_d, positive, positive_b, exclude, exclude_b, top, total, weighted,
    count, candidates, share, scale,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, EXCLUDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    row = _load(rows, b, row_b, row_d, count, WIDTH, BLOCK_D)
    m = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_B,), tl.float32)  # noqa: E741
    sums = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    if not KEYS:
        target = tl.load(positive + b.to(tl.int64) * positive_b, mask=b < count, other=-1).to(tl.int32)
    if EXCLUDE:
        left_out = tl.load(exclude + b.to(tl.int64) * exclude_b, mask=b < count, other=-1).to(tl.int32)
    end = tl.minimum(split * share + share, candidates)
    for start in range(split * share, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        column = _load(columns, n, column_n, column_d, end, WIDTH, BLOCK_D)
        logit = tl.dot(row, tl.trans(column), input_precision="ieee") * scale
        logit = tl.where((n < end)[None, :], logit, float("-inf"))
        if not KEYS:
            logit = tl.where(n[None, :] == target[:, None], float("-inf"), logit)
        if EXCLUDE:
            logit = tl.where(n[None, :] == left_out[:, None], float("-inf"), logit)
        larger = tl.maximum(m, tl.max(logit, 1))
        # A row whose candidates here are all left out has no largest logit yet; -inf - -inf would be NaN.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shrink = tl.exp2(m - base)
        p = tl.exp2(logit - base[:, None])
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        sums = sums * shrink[:, None] + tl.dot(p.to(column.dtype), column, input_precision="ieee")
        m = larger
    d = tl.arange(0, BLOCK_D)
    place = split.to(tl.int64) * count + b
    tl.store(top + place, m, mask=b < count)
    tl.store(total + place, l, mask=b < count)
    tl.store(weighted + place[:, None] * WIDTH + d[None, :], sums, mask=(b < count)[:, None] & (d < WIDTH)[None, :])


@triton.jit(do_not_specialize=["count", "candidates", "splits"])
def _merge_kernel(
    rows, row_b, row_d, targets, target_b, target_d, positive, positive_b, top, total, weighted, loss, log_sum, missing,
    direction, count, candidates, splits, scale,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: SPLITS shares of the columns at a time, side by side."""
    b = tl.program_id(0).to(tl.int64)
    d, part = tl.arange(0, BLOCK_D), tl.arange(0, SPLITS)
    wide = d < WIDTH
    row = tl.load(rows + b * row_b + d * row_d, mask=wide, other=0.0).to(tl.float32)
    index = b if KEYS else tl.load(positive + b * positive_b).to(tl.int64)
    target = tl.load(targets + index * target_b + d * target_d, mask=wide, other=0.0).to(tl.float32)
    own = tl.sum(tl.where(wide, row * target + 0.0, 0.0), 0) * scale
    largest = tl.full((SPLITS,), float("-inf"), tl.float32)
    for start in range(0, splits, SPLITS):
        there = start + part < splits
        here = tl.load(top + (start + part).to(tl.int64) * count + b, mask=there, other=float("-inf"))
        largest = tl.maximum(largest, here)
    m = tl.max(largest, 0)
    base = tl.where(m == float("-inf"), 0.0, m)  # a row whose candidates are all left out has none
    # Sums for each of the SPLITS, put together once: a product that goes straight into a sum over threads may be fused
    # with its first addition in some of them, whose copies of the sum then differ.
    others_by_split = tl.zeros((SPLITS,), tl.float32)
    sums_by_split = tl.zeros((SPLITS, BLOCK_D), tl.float32)
    for start in range(0, splits, SPLITS):
        there = start + part < splits
        place = (start + part).to(tl.int64) * count + b
        weight = tl.exp2(tl.load(top + place, mask=there, other=float("-inf")) - base)
        others_by_split += tl.load(total + place, mask=there, other=0.0) * weight
        spread = there[:, None] & wide[None, :]
        sums_by_split += (
            tl.load(weighted + place[:, None] * WIDTH + d[None, :], mask=spread, other=0.0) * weight[:, None]
        )
    sums = tl.sum(sums_by_split, 0)
    base = tl.maximum(m, own)
    share = tl.exp2(m - base)
    others = tl.sum(others_by_split, 0) * share
    everything = others + tl.exp2(own - base)
    lse = base + tl.log2(everything)
    # log(1 + others), corrected for what the sum rounds away (others may be 1e-9)
    one = 1.0 + others
    small = tl.where(one == 1.0, others, tl.log(one) * (others / tl.where(one == 1.0, 1.0, one - 1.0)))
    tl.store(loss + b, tl.where(own >= m, small, (lse - own) * 0.6931471805599453))
    tl.store(log_sum + b, lse)
    tl.store(missing + b, others / everything)
    tl.store(direction + b * WIDTH + d, (sums * share - target * others) / everything, mask=wide)


@triton.jit(do_not_specialize=["count", "candidates"])
def _columns_kernel(
    rows, row_b, row_d, columns, column_n, column_d, positive, positive_b, exclude, exclude_b, log_sum, missing, factor,
    gradient, count, candidates, scale,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, EXCLUDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = _load(columns, n, column_n, column_d, candidates, WIDTH, BLOCK_D)
    sums = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, count, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        inside = b < count
        row = _load(rows, b, row_b, row_d, count, WIDTH, BLOCK_D)
        lse = tl.load(log_sum + b, mask=inside, other=float("inf"))
        weight = tl.exp2(tl.dot(column, tl.trans(row), input_precision="ieee") * scale - lse[None, :])
        if EXCLUDE:
            left_out = tl.load(exclude + b.to(tl.int64) * exclude_b, mask=inside, other=-1).to(tl.int32)
            weight = tl.where(left_out[None, :] == n[:, None], 0.0, weight)
        if not KEYS:
            target = tl.load(positive + b.to(tl.int64) * positive_b, mask=inside, other=-1).to(tl.int32)
            lacking = tl.load(missing + b, mask=inside, other=0.0)
            weight = tl.where(target[None, :] == n[:, None], -lacking[None, :], weight)
        sums += tl.dot(weight.to(row.dtype), row, input_precision="ieee")
    d = tl.arange(0, BLOCK_D)
    place = n.to(tl.int64)[:, None] * WIDTH + d[None, :]
    result = (sums * tl.load(factor)).to(gradient.dtype.element_ty)
    tl.store(gradient + place, result, mask=(n < candidates)[:, None] & (d < WIDTH)[None, :])


def _index(index: Tensor | None) -> tuple[Tensor | None, int]:
    return index, 0 if index is None else index.stride(0)


def _tile(width: int, dtype: torch.dtype, backward: bool = False) -> dict[str, int]:
    """BLOCK_D a power of two that a tensor core takes; fewer rows at a time where their sums would spill registers:
    wide ones, and float32, which is multiplied without tensor cores."""
    block = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:
        return {"BLOCK_B": 16, "BLOCK_N": 32, "BLOCK_D": block, "num_warps": 8, "num_stages": 1}
    side = 64 if block <= 128 else 32
    return {"BLOCK_B": 32 if backward else side, "BLOCK_N": side, "BLOCK_D": block, "num_warps": 4, "num_stages": 2}


@custom("info_nce")
def _forward(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None,
    exclude: Tensor | None,
    keys: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> loss (); of each row: log2-sum-exp2 of its logits (B,), 1 - probability of its positive (B,), gradient up to a
    factor (B, D) float32."""
    (count, width), candidates = rows.shape, columns.shape[0]
    tile = _tile(width, rows.dtype)
    row_blocks = triton.cdiv(count, tile["BLOCK_B"])
    splits, share = shares(row_blocks, candidates, tile["BLOCK_N"], rows.device)
    new = {"dtype": torch.float32, "device": rows.device}
    top, total = torch.empty(splits, count, **new), torch.empty(splits, count, **new)
    weighted = torch.empty(splits, count, width, **new)
    loss, log_sum, missing = (torch.empty(count, **new) for _ in range(3))
    direction = torch.empty(count, width, **new)
    scale = 1 / (temperature * LN2)
    targets = columns if keys is None else keys
    with torch.cuda.device_of(rows):
        _pass_kernel[(row_blocks, splits)](
            rows,
            *rows.stride(),
            columns,
            *columns.stride(),
            *_index(positive),
            *_index(exclude),
            top,
            total,
            weighted,
            count,
            candidates,
            share,
            scale,
            WIDTH=width,
            KEYS=keys is not None,
            EXCLUDE=exclude is not None,
            **tile,
        )
        _merge_kernel[(count,)](
            rows,
            *rows.stride(),
            targets,
            *targets.stride(),
            *_index(positive),
            top,
            total,
            weighted,
            loss,
            log_sum,
            missing,
            direction,
            count,
            candidates,
            splits,
            scale,
            WIDTH=width,
            KEYS=keys is not None,
            SPLITS=SPLITS,
            BLOCK_D=tile["BLOCK_D"],
            num_warps=4,
        )
    return loss.sum() / max(count, 1), log_sum, missing, direction


@_forward.register_fake
def _(rows, columns, positive, exclude, keys, temperature):
    new = {"dtype": torch.float32, "device": rows.device}
    per_row = torch.empty(rows.shape[0], **new)
    return torch.empty((), **new), per_row, torch.empty_like(per_row), torch.empty(rows.shape, **new)


@custom("info_nce_columns")
def _backward_columns(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None,
    exclude: Tensor | None,
    log_sum: Tensor,
    missing: Tensor,
    factor: Tensor,
    temperature: float,
) -> Tensor:
    """The gradient of `columns`; `factor`, a float32 scalar, is that of one row's logit over the temperature."""
    (count, width), candidates = rows.shape, columns.shape[0]
    tile = _tile(width, rows.dtype, backward=True)
    gradient = columns.new_empty(columns.shape)
    with torch.cuda.device_of(rows):
        _columns_kernel[(triton.cdiv(candidates, tile["BLOCK_N"]),)](
            rows,
            *rows.stride(),
            columns,
            *columns.stride(),
            *_index(positive),
            *_index(exclude),
            log_sum,
            missing,
            factor,
            gradient,
            count,
            candidates,
            1 / (temperature * LN2),
            WIDTH=width,
            KEYS=positive is None,
            EXCLUDE=exclude is not None,
            **tile,
        )
    return gradient


@_backward_columns.register_fake
def _(rows, columns, positive, exclude, log_sum, missing, factor, temperature):
    return columns.new_empty(columns.shape)


_backward_columns.register_autograd(no_second_gradient("info_nce"))


def _save(ctx, inputs, output):
    rows, columns, positive, exclude, _, ctx.temperature = inputs
    ctx.save_for_backward(rows, columns, positive, exclude, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_loss, *unused):
    rows, columns, positive, exclude, log_sum, missing, direction = ctx.saved_tensors
    factor = grad_loss / (max(len(rows), 1) * ctx.temperature)
    for_rows = (direction * factor).to(rows.dtype) if ctx.needs_input_grad[0] else None
    for_columns = None
    if ctx.needs_input_grad[1]:
        for_columns = _backward_columns(rows, columns, positive, exclude, log_sum, missing, factor, ctx.temperature)
    return for_rows, for_columns, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def info_nce(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None,
    exclude: Tensor | None,
    keys: Tensor | None,
    *,
    temperature: float,
) -> Tensor:
    """Arguments and result of `headrace.kernels.info_nce.reference.info_nce`, without float64."""
    return _forward(rows, columns, positive, exclude, keys, temperature)[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: a queue (KEYS) and a batch that excludes the row itself."""
    for width, dtype in ((128, "bf16"), (128, "fp32"), (256, "bf16")):
        matrices = {name: f"*{dtype}" for name in ("rows", "columns", "targets", "gradient")}
        indices = {"positive": "*i64", "exclude": "*i64"}
        names = ("top", "total", "weighted", "loss", "log_sum", "missing", "direction", "factor")
        types = {**matrices, **indices, **dict.fromkeys(names, "*fp32"), "scale": "fp32"}
        for form in ("queue", "batch"):
            keys = form == "queue"
            index = {"positive": None, "exclude": None, "positive_b": 0, "exclude_b": 0}
            index = {"positive_b": 1, "exclude_b": 1} if form == "batch" else index
            flags = {"WIDTH": width, "KEYS": keys, "EXCLUDE": not keys, "row_d": 1, "column_d": 1, "target_d": 1}
            kernels = [("pass", _pass_kernel), ("merge", _merge_kernel)] + [("columns", _columns_kernel)] * (not keys)
            for name, kernel in kernels:
                tile = _tile(width, DTYPES[dtype], backward=kernel is _columns_kernel)
                launch = {"warps": tile.pop("num_warps"), "stages": tile.pop("num_stages")}
                if kernel is _merge_kernel:
                    tile, launch = {"SPLITS": SPLITS, "BLOCK_D": tile["BLOCK_D"]}, {}
                constants = {**index, **flags, **tile}
                constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
                yield Build(
                    name=f"{name} {form} d{width} {dtype}",
                    kernel=kernel,
                    types={key: types[key] for key in kernel.arg_names if key in types and key not in constants},
                    constants=constants,
                    aligned=tuple(key for key in ALIGNED if key in kernel.arg_names),
                    **launch,
                )
