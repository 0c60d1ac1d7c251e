"""Token mixing in Triton: one kernel moves tokens forwards and their gradients backwards.

Row r of the result takes row `count - 1 - r` of the source where masked, else row r. Where the source has fewer rows
than that (the gradient of a half), nothing was read forwards, and the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom
from .reference import result_dtype

TILE = 4096  # values of one program


@triton.jit(do_not_specialize=["count", "source_rows", "tokens", "blocks"])
def _kernel(
    source,
    source_b,
    source_n,
    source_d,
    positions,
    position_n,
    position_d,
    mask,
    mask_n,
    out,
    count,
    source_rows,
    tokens,
    blocks,
    WIDTH: tl.constexpr,
    POSITIONS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    n = (program % blocks) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, BLOCK)
    inside = (n < tokens)[:, None] & (d < WIDTH)[None, :]
    partner = tl.load(mask + n * mask_n, mask=n < tokens, other=0) != 0
    origin = tl.where(partner, count - 1 - row, row)
    # 64 bit: 2048 images of 3136 tokens, 512 values each, are more than an int32 can count.
    place = source + origin[:, None] * source_b + n.to(tl.int64)[:, None] * source_n + d[None, :] * source_d
    value = tl.load(place, mask=inside & (origin < source_rows)[:, None], other=0.0).to(tl.float32)
    if POSITIONS:
        place = positions + n[:, None] * position_n + d[None, :] * position_d
        value += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    place = out + (row * tokens + n)[:, None] * WIDTH + d[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=inside)


def _tile(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "TOKENS": max(1, TILE // block)}


@custom("token_mix")
def _move(source: Tensor, positions: Tensor | None, mask: Tensor, count: int, rows: int, dtype: torch.dtype) -> Tensor:
    """(rows, N, D) of `dtype`; `count` is the number of images that are each other's partners."""
    _, tokens, width = source.shape
    tile = _tile(width)
    blocks = triton.cdiv(tokens, tile["TOKENS"])
    out = source.new_empty(rows, tokens, width, dtype=dtype)
    with torch.cuda.device_of(source):
        _kernel[(rows * blocks,)](
            source,
            *source.stride(),
            positions,
            *((0, 0) if positions is None else positions.stride()),
            mask,
            mask.stride(1),
            out,
            count,
            len(source),
            tokens,
            blocks,
            WIDTH=width,
            POSITIONS=positions is not None,
            num_warps=8 if tile["BLOCK"] > TILE else 4,
            **tile,
        )
    return out


@_move.register_fake
def _(source, positions, mask, count, rows, dtype):
    return source.new_empty(rows, source.shape[1], source.shape[2], dtype=dtype)


def _save(ctx, inputs, output):
    source, positions, mask, ctx.count, _, _ = inputs
    ctx.save_for_backward(mask)
    ctx.rows, ctx.dtype = len(source), source.dtype
    ctx.positions = None if positions is None else positions.dtype


def _differentiate(ctx, gradient):
    (mask,) = ctx.saved_tensors
    for_source = for_positions = None
    if ctx.needs_input_grad[0]:
        for_source = _move(gradient, None, mask, ctx.count, ctx.rows, ctx.dtype)
    if ctx.needs_input_grad[1]:
        for_positions = gradient.sum(0, dtype=torch.float32).to(ctx.positions)
    return for_source, for_positions, None, None, None, None


_move.register_autograd(_differentiate, setup_context=_save)


def token_mix(x: Tensor, positions: Tensor | None, mask: Tensor, *, halve: bool) -> Tensor:
    """Arguments and result of `headrace.kernels.token_mix.reference.token_mix`, without float64."""
    return _move(x, positions, mask, len(x), len(x) // 2 if halve else len(x), result_dtype(x, positions))


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: the first stage of MixMIM-B, its gradient, and predictions un-mixed."""
    for name, width, source, out, positions in (
        ("mix d128 bf16", 128, "bf16", "fp32", "fp32"),
        ("mix d128 fp32", 128, "fp32", "fp32", "fp32"),
        ("mix d192 fp16", 192, "fp16", "fp16", "fp16"),
        ("move back d128 bf16", 128, "fp32", "bf16", None),
        ("unmix d3072 bf16", 3072, "bf16", "bf16", None),
    ):
        constants = {"WIDTH": width, "POSITIONS": positions is not None, "source_d": 1, "mask_n": 1, **_tile(width)}
        constants |= {"position_d": 1} if positions else {"positions": None, "position_n": 0, "position_d": 0}
        yield Build(
            name=name,
            kernel=_kernel,
            types={"source": f"*{source}", "out": f"*{out}", "mask": "*i1"}
            | ({"positions": f"*{positions}"} if positions else {}),
            constants=constants,
            aligned=("source", "source_b", "source_n", "out", *(("positions", "position_n") if positions else ())),
        )
