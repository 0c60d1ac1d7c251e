"""Re-assembly of tokens in Triton: one program per output token, each value read and written once.

The backward has one program for a few output tokens of one image: it copies the gradients of visible tokens back to
where they came from, which no two programs share, and adds up those of hidden ones. These partial sums, one row a
program, are added in a fixed order.
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
from .reference import result_dtype

GROUP = 16  # output tokens of one backward program


@triton.jit(do_not_specialize=["places", "prefix", "visible"])
def _forward_kernel(
    tokens,
    token_b,
    token_l,
    token_d,
    mask_token,
    mask_d,
    positions,
    position_l,
    position_d,
    restore,
    restore_b,
    restore_l,
    out,
    places,
    prefix,
    visible,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // (prefix + places)).to(tl.int64)
    i = (program % (prefix + places)).to(tl.int64) - prefix
    d = tl.arange(0, BLOCK)
    inside = d < WIDTH
    if i < 0:
        value = tl.load(tokens + b * token_b + (i + prefix) * token_l + d * token_d, mask=inside, other=0.0)
        result = value.to(tl.float32)
    else:
        source = tl.load(restore + b * restore_b + i * restore_l)
        if source < visible:
            value = tl.load(tokens + b * token_b + (source + prefix) * token_l + d * token_d, mask=inside, other=0.0)
            result = value.to(tl.float32)
        else:
            result = tl.load(mask_token + d * mask_d, mask=inside, other=0.0).to(tl.float32)
        position = tl.load(positions + i * position_l + d * position_d, mask=inside, other=0.0)
        result += position.to(tl.float32)
    tl.store(out + program.to(tl.int64) * WIDTH + d, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places", "prefix", "visible", "groups"])
def _backward_kernel(
    gradient,
    gradient_b,
    gradient_l,
    gradient_d,
    restore,
    restore_b,
    restore_l,
    for_tokens,
    partial,
    places,
    prefix,
    visible,
    groups,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // groups).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < WIDTH
    hidden = tl.zeros((BLOCK,), tl.float32)
    for step in range(0, GROUP):
        row = program % groups * GROUP + step
        if row < prefix + places:
            value = tl.load(
                gradient + b * gradient_b + row.to(tl.int64) * gradient_l + d * gradient_d, mask=inside, other=0.0
            )
            source = row.to(tl.int64)
            if row >= prefix:
                source = tl.load(restore + b * restore_b + (row - prefix).to(tl.int64) * restore_l) + prefix
            if source < prefix + visible:
                place = for_tokens + (b * (prefix + visible) + source) * WIDTH + d
                tl.store(place, value.to(for_tokens.dtype.element_ty), mask=inside)
            else:
                hidden += value.to(tl.float32)
    tl.store(partial + program.to(tl.int64) * WIDTH + d, hidden, mask=inside)


def _block_and_warps(width: int) -> tuple[int, int]:
    block = triton.next_power_of_2(width)
    return block, min(8, max(1, block // 256))


@custom("token_select")
def _forward(tokens: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor, prefix: int) -> Tensor:
    batch, count, width = tokens.shape
    places = restore.shape[1]
    out = tokens.new_empty(batch, prefix + places, width, dtype=result_dtype(tokens, mask_token, positions))
    block, warps = _block_and_warps(width)
    with torch.cuda.device_of(tokens):
        _forward_kernel[(batch * (prefix + places),)](
            tokens,
            *tokens.stride(),
            mask_token,
            *mask_token.stride(),
            positions,
            *positions.stride(),
            restore,
            *restore.stride(),
            out,
            places,
            prefix,
            count - prefix,
            WIDTH=width,
            BLOCK=block,
            num_warps=warps,
        )
    return out


@_forward.register_fake
def _(tokens, mask_token, positions, restore, prefix):
    shape = (tokens.shape[0], prefix + restore.shape[1], tokens.shape[2])
    return tokens.new_empty(shape, dtype=result_dtype(tokens, mask_token, positions))


@custom("token_select_backward")
def _backward(
    gradient: Tensor, restore: Tensor, prefix: int, visible: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> gradient of the tokens (B, prefix + visible, D), in `dtype`; of the mask token (D,) float32."""
    batch, rows, width = gradient.shape
    groups = triton.cdiv(rows, GROUP)
    for_tokens = gradient.new_empty(batch, prefix + visible, width, dtype=dtype)
    partial = gradient.new_empty(batch * groups, width, dtype=torch.float32)
    block, warps = _block_and_warps(width)
    with torch.cuda.device_of(gradient):
        _backward_kernel[(batch * groups,)](
            gradient,
            *gradient.stride(),
            restore,
            *restore.stride(),
            for_tokens,
            partial,
            rows - prefix,
            prefix,
            visible,
            groups,
            WIDTH=width,
            BLOCK=block,
            GROUP=GROUP,
            num_warps=warps,
        )
    return for_tokens, partial.sum(0)


@_backward.register_fake
def _(gradient, restore, prefix, visible, dtype):
    for_tokens = gradient.new_empty(gradient.shape[0], prefix + visible, gradient.shape[2], dtype=dtype)
    return for_tokens, gradient.new_empty(gradient.shape[2], dtype=torch.float32)


_backward.register_autograd(no_second_gradient("token_select"))


def _save(ctx, inputs, output):
    tokens, mask_token, positions, restore, ctx.prefix = inputs
    ctx.save_for_backward(restore)
    ctx.visible = tokens.shape[1] - ctx.prefix
    ctx.dtypes = tokens.dtype, mask_token.dtype, positions.dtype


def _differentiate(ctx, gradient):
    (restore,) = ctx.saved_tensors
    tokens, mask_token, positions = ctx.dtypes
    for_tokens, for_mask_token = _backward(gradient, restore, ctx.prefix, ctx.visible, tokens)
    for_positions = None
    if ctx.needs_input_grad[2]:
        for_positions = gradient[:, ctx.prefix :].sum(0, dtype=torch.float32).to(positions)
    return for_tokens, for_mask_token.to(mask_token), for_positions, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def token_select(tokens: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor, *, prefix: int) -> Tensor:
    """Arguments and result of `headrace.kernels.token_select.token_select`, without float64."""
    return _forward(tokens, mask_token, positions, restore, prefix)


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: decoders of 512 and of a width that is no power of two."""
    for width, dtype, parameters in (
        (512, "bf16", "fp32"),
        (512, "fp32", "fp32"),
        (512, "bf16", "bf16"),
        (384, "fp16", "fp32"),
    ):
        block, warps = _block_and_warps(width)
        result = dtype if parameters == dtype else "fp32"
        types = {
            **dict.fromkeys(("tokens", "for_tokens"), f"*{dtype}"),
            **dict.fromkeys(("mask_token", "positions"), f"*{parameters}"),
            **dict.fromkeys(("out", "gradient"), f"*{result}"),
            "partial": "*fp32",
            "restore": "*i64",
        }
        for name, kernel in (("forward", _forward_kernel), ("backward", _backward_kernel)):
            constants = {"token_d": 1, "mask_d": 1, "position_d": 1, "gradient_d": 1, "restore_l": 1}
            constants |= {"WIDTH": width, "BLOCK": block, "GROUP": GROUP}
            aligned = ("tokens", "token_b", "token_l", "positions", "position_l", "out", "gradient", "gradient_b")
            aligned += ("gradient_l", "for_tokens", "partial")
            yield Build(
                name=f"{name} d{width} {dtype} {parameters}",
                kernel=kernel,
                types={key: value for key, value in types.items() if key in kernel.arg_names},
                constants={key: value for key, value in constants.items() if key in kernel.arg_names},
                aligned=tuple(key for key in aligned if key in kernel.arg_names),
                warps=warps,
            )
