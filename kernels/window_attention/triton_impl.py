"""Window attention in Triton: one program takes one head through many windows, and a window's rows stay in registers.

A program finds its tokens where the linear layer left them, so rolling and cutting cost nothing. Because whole rows of
the scores are at hand, the backward needs neither the output nor the row sums: it reads qkv and the gradient and writes
a gradient, the least there is. The bias's gradient is summed over a program's windows in registers and stored once;
partial sums are then added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UserError
from ..aot import GATE, Build
from ..compiled import custom
from ..recompute import no_second_gradient
from ..tiles import processors, tile

LOG2E = tl.constexpr(1.4426950408889634)
PROGRAMS = 8  # a multiprocessor; enough to hide loads, few enough that partial sums are small

# Chosen for the absence of spilled registers: what is left are 8 bytes of stack in 16 bit, 16 in 32 bit. In 32 bit 4
# warps would need up to 11 KiB of it on NVIDIA's GPUs; on gfx942 8 warps up to 408 bytes.
DEFAULT = {"num_warps": 4, "num_stages": 1}
_WIDE = {"num_warps": 8, "num_stages": 1}
_NVIDIA = {f"{kernel} 32bit d{size}": _WIDE for kernel in ("forward", "backward") for size in (32, 64)}
_NVIDIA["backward 16bit d64"] = _WIDE
TILES = {"sm_80": {**_NVIDIA, "backward 16bit d64": DEFAULT}, "sm_90": _NVIDIA, "sm_100": _NVIDIA}
CANDIDATES = {
    kernel: [{"num_warps": warps, "num_stages": stages} for warps in (2, 4, 8) for stages in (1, 2)]
    for kernel in ("forward", "backward")
}


@triton.jit
def _window_tokens(
    index, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """Of a window: its image, the places of its tokens in the map, which of the tiles of `_bias_kernel` it takes."""
    COLUMNS: tl.constexpr = WIDTH // WINDOW
    WINDOWS: tl.constexpr = HEIGHT // WINDOW * COLUMNS
    place = tl.arange(0, BLOCK)
    # What depends on the place alone, divisions first, is the same for all windows: the compiler moves it out of the
    # loop, but not out of sums with what depends on the window.
    row, column = place // WINDOW, place % WINDOW
    window = index % WINDOWS
    wy, wx = window // COLUMNS, window % COLUMNS
    token = (row + SHIFT) * WIDTH + column + SHIFT + (wy * (WINDOW * WIDTH) + wx * WINDOW)
    kind = 0
    if SHIFT > 0:
        # Windows of the last row and the last column of windows reach around the map.
        low, right = (row >= WINDOW - SHIFT).to(tl.int32), (column >= WINDOW - SHIFT).to(tl.int32)
        last_row, last_column = (wy == HEIGHT // WINDOW - 1).to(tl.int32), (wx == COLUMNS - 1).to(tl.int32)
        token -= last_row * low * (HEIGHT * WIDTH) + last_column * right * WIDTH
        kind = 2 * last_row + last_column
    # 64 bit: 2048 images of 56x56 tokens with 3*128 values each are more than an int32 can count; inside of an image 32
    # bit do, in half the registers. A sum because the interpreter counts in Python's integers, which cannot be cast.
    image = tl.zeros((), tl.int64) + index // WINDOWS
    return image, token, kind


@triton.jit
def _scores(
    q,
    k,
    bias,
    groups,
    group_b,
    image,
    token,
    scale,
    N: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores in units of log2(e), which makes exp2 of exp; -inf for keys that do not exist."""
    place = tl.arange(0, BLOCK)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + bias
    if GROUPED:
        group = tl.load(groups + image * group_b + token, mask=place < N, other=0)
        # A row of padding is in no group: with -inf everywhere it would become NaN, and NaN times 0 is not 0.
        seen = (group[:, None] == group[None, :]) | (place >= N)[:, None]
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _bias_kernel(
    table, table_r, table_h, bias_tiles, WINDOW: tl.constexpr, SHIFT: tl.constexpr, KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per head and kind: the bias of each pair of places, in units of log2(e); -inf for keys that do not
    exist. Kinds of windows are, where there is a shift: inner ones, those of the last column, of the last row, of both;
    they hold one to four regions, and -100 is between them."""
    N: tl.constexpr = WINDOW * WINDOW
    head, kind = tl.program_id(0) // KINDS, tl.program_id(0) % KINDS
    place = tl.arange(0, BLOCK)
    # The row of a pair is a difference of two numbers plus that of no offset.
    corner = place // WINDOW * (2 * WINDOW - 1) + place % WINDOW
    row = corner[:, None] - corner[None, :] + (WINDOW - 1) * 2 * WINDOW
    real = (place < N)[:, None] & (place < N)[None, :]
    bias = tl.load(table + row * table_r + head * table_h, mask=real, other=0.0).to(tl.float32) * LOG2E
    low = (place // WINDOW >= WINDOW - SHIFT).to(tl.int32) * (kind // 2)
    right = (place % WINDOW >= WINDOW - SHIFT).to(tl.int32) * (kind % 2)
    region = 2 * low + right
    bias = tl.where(region[:, None] == region[None, :], bias, bias - 100.0 * LOG2E)
    bias = tl.where((place < N)[None, :], bias, float("-inf"))
    tl.store(bias_tiles + (tl.program_id(0) * BLOCK + place[:, None]) * BLOCK + place[None, :], bias)


@triton.jit
def _load_bias(bias_tiles, head, kind, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    return tl.load(bias_tiles + ((head * KINDS + kind) * BLOCK + place[:, None]) * BLOCK + place[None, :])


@triton.jit(do_not_specialize=["windows"])
def _forward_kernel(
    qkv,
    bias_tiles,
    groups,
    group_b,
    out,
    windows,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUPED: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Heads are neighbours in the grid as they are in memory; all of it is on the first axis, the others end at 65535.
    head = tl.program_id(0) % HEADS
    KINDS: tl.constexpr = 4 if SHIFT > 0 else 1
    bias = _load_bias(bias_tiles, head, 0, KINDS, BLOCK)
    N: tl.constexpr = WINDOW * WINDOW
    inside = (tl.arange(0, BLOCK) < N)[:, None]
    channel = head * D + tl.arange(0, D)[None, :]
    for index in range(tl.program_id(0) // HEADS, windows, tl.num_programs(0) // HEADS):
        image, token, kind = _window_tokens(index, HEIGHT, WIDTH, WINDOW, SHIFT, BLOCK)
        source = qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        offset = token[:, None] * (3 * HEADS * D) + channel
        q = tl.load(source + offset, mask=inside, other=0.0)
        k = tl.load(source + HEADS * D + offset, mask=inside, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=inside, other=0.0)
        if SHIFT > 0:
            bias = _load_bias(bias_tiles, head, kind, KINDS, BLOCK)
        scores = _scores(q, k, bias, groups, group_b, image, token, scale, N, GROUPED, BLOCK)
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        result = tl.dot(p.to(v.dtype), v, input_precision="ieee") / tl.sum(p, 1)[:, None]
        target = out + image * (HEIGHT * WIDTH * HEADS * D)
        tl.store(target + token[:, None] * (HEADS * D) + channel, result.to(v.dtype), mask=inside)


@triton.jit(do_not_specialize=["windows"])
def _backward_kernel(
    qkv,
    bias_tiles,
    groups,
    group_b,
    grad,
    grad_qkv,
    partial,
    windows,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUPED: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    N: tl.constexpr = WINDOW * WINDOW
    KINDS: tl.constexpr = 4 if SHIFT > 0 else 1
    place = tl.arange(0, BLOCK)
    inside = (place < N)[:, None]
    channel = head * D + tl.arange(0, D)[None, :]
    grad_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    for index in range(tl.program_id(0) // HEADS, windows, tl.num_programs(0) // HEADS):
        image, token, kind = _window_tokens(index, HEIGHT, WIDTH, WINDOW, SHIFT, BLOCK)
        source = qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        offset = token[:, None] * (3 * HEADS * D) + channel
        q = tl.load(source + offset, mask=inside, other=0.0)
        k = tl.load(source + HEADS * D + offset, mask=inside, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=inside, other=0.0)
        above = grad + image * (HEIGHT * WIDTH * HEADS * D)
        g = tl.load(above + token[:, None] * (HEADS * D) + channel, mask=inside, other=0.0)
        # Read anew for each window: beside its own gradient the registers cannot hold it, nor what computes it.
        bias = _load_bias(bias_tiles, head, kind, KINDS, BLOCK)
        scores = _scores(q, k, bias, groups, group_b, image, token, scale, N, GROUPED, BLOCK)
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        grad_v = tl.dot(tl.trans(p.to(v.dtype)), g, input_precision="ieee")
        grad_p = tl.dot(g, tl.trans(v), input_precision="ieee")
        grad_s = p * (grad_p - tl.sum(grad_p * p, 1)[:, None])
        grad_bias += grad_s
        low = grad_s.to(q.dtype)
        grad_q = tl.dot(low, k, input_precision="ieee") * scale
        grad_k = tl.dot(tl.trans(low), q, input_precision="ieee") * scale
        target = grad_qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        tl.store(target + offset, grad_q.to(q.dtype), mask=inside)
        tl.store(target + HEADS * D + offset, grad_k.to(q.dtype), mask=inside)
        tl.store(target + 2 * HEADS * D + offset, grad_v.to(q.dtype), mask=inside)
    pair = place[:, None] * N + place[None, :]
    own = partial + tl.program_id(0) * (N * N) + pair
    tl.store(own, grad_bias, mask=inside & (place < N)[None, :])


@triton.jit
def _table_kernel(
    grad_bias, grad_table, WINDOW: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """One program per head and ROWS rows of the table: each is the sum over all pairs of places at that offset."""
    N: tl.constexpr = WINDOW * WINDOW
    SIDE: tl.constexpr = 2 * WINDOW - 1
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS * ROWS + tl.arange(0, ROWS))[:, None]
    key = tl.arange(0, BLOCK)[None, :]
    y = key // WINDOW + row // SIDE - (WINDOW - 1)
    x = key % WINDOW + row % SIDE - (WINDOW - 1)
    found = (key < N) & (y >= 0) & (y < WINDOW) & (x >= 0) & (x < WINDOW)
    value = tl.load(grad_bias + (head * N + y * WINDOW + x) * N + key, mask=found, other=0.0)
    inside = row < SIDE * SIDE
    tl.store(grad_table + row * HEADS + head, tl.sum(value, 1, keep_dims=True), mask=inside)


def grad_of_table(grad_bias: Tensor, table: Tensor, window: int) -> Tensor:
    """The gradient of the table, from that of the bias of each pair of places: (heads, N, N) float32."""
    gradient = torch.empty_like(table, memory_format=torch.contiguous_format)
    rows, heads = table.shape
    block = triton.next_power_of_2(window * window)
    _table_kernel[(triton.cdiv(rows, 16) * heads,)](
        grad_bias, gradient, WINDOW=window, HEADS=heads, BLOCK=block, ROWS=16
    )
    return gradient


def _key(kernel: str, bits: int, head_dim: int) -> str:
    return f"{kernel} {bits}bit d{head_dim}"


class _Plan(NamedTuple):
    """What launches for one shape have in common."""

    out: tuple[int, ...]  # the output's shape
    tiles: tuple[int, int, int]  # that of the bias's tiles, a head's kinds after one another
    windows: int
    programs: int  # a head
    bias: dict[str, int]  # constants of `_bias_kernel`
    constants: dict[str, int]  # of the forward and the backward


def _tiles_shape(heads: int, window: int, shift: int) -> tuple[int, int, int]:
    block = max(16, triton.next_power_of_2(window * window))
    return heads * (4 if shift else 1), block, block


@lru_cache
def _plan(shape: torch.Size, window: int, shift: int, grouped: bool, processors: int) -> _Plan:
    batch, height, width, _, heads, head_dim = shape
    windows = batch * (height // window) * (width // window)
    programs = min(windows, triton.cdiv(processors * PROGRAMS, heads))
    tiles = _tiles_shape(heads, window, shift)
    block = tiles[1]
    bias = {"WINDOW": window, "SHIFT": shift, "KINDS": tiles[0] // heads, "BLOCK": block}
    constants = {"HEIGHT": height, "WIDTH": width, "WINDOW": window, "SHIFT": shift, "GROUPED": grouped,
                 "HEADS": heads, "D": head_dim, "BLOCK": block}  # fmt: skip
    return _Plan((batch, height, width, heads, head_dim), tiles, windows, programs, bias, constants)


def _planned(qkv: Tensor, groups: Tensor | None, window: int, shift: int) -> _Plan:
    # The interpreter gets few programs, that each of them has several windows.
    return _plan(qkv.shape, window, shift, groups is not None, processors(qkv.device, 1))


def _groups(qkv: Tensor, groups: Tensor | None) -> tuple[Tensor, int]:
    """What kernels take for groups, and its stride."""
    return (qkv, 0) if groups is None else (groups, 0 if groups.shape[0] == 1 else groups.stride(0))


@custom("window_attention")
def forward(
    qkv: Tensor, table: Tensor, groups: Tensor | None, window: int, shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    """-> (B, H, W, heads, D); the tiles of the bias, which with the arguments are all that the backward needs."""
    plan = _planned(qkv, groups, window, shift)
    out, tiles = qkv.new_empty(plan.out), qkv.new_empty(plan.tiles, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _bias_kernel[plan.tiles[:1]](table, *table.stride(), tiles, **plan.bias)
        if plan.windows:
            options = tile("window_attention", _key("forward", 8 * qkv.itemsize, qkv.shape[5]), DEFAULT)
            _forward_kernel[(plan.programs * qkv.shape[4],)](
                *(qkv, tiles, *_groups(qkv, groups), out, plan.windows, scale),
                **plan.constants,
                **options,
            )
    return out, tiles


@forward.register_fake
def _(qkv, table, groups, window, shift, scale):
    tiles = _tiles_shape(qkv.shape[4], window, shift)  # sizes of qkv may be symbols here, which no table can hold
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:]), qkv.new_empty(tiles, dtype=torch.float32)


@custom("window_attention_backward")
def backward(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor,
    groups: Tensor | None,
    tiles: Tensor,
    window: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """-> gradients of qkv and table; `grad` is contiguous."""
    if not qkv.numel():
        return torch.empty_like(qkv), torch.zeros_like(table, memory_format=torch.contiguous_format)
    plan = _planned(qkv, groups, window, shift)
    options = tile("window_attention", _key("backward", 8 * qkv.itemsize, qkv.shape[5]), DEFAULT)
    grad_qkv = torch.empty_like(qkv)
    tokens, heads = window * window, qkv.shape[4]
    partial = qkv.new_empty(plan.programs, heads, tokens, tokens, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _backward_kernel[(plan.programs * heads,)](
            *(qkv, tiles, *_groups(qkv, groups), grad, grad_qkv, partial, plan.windows, scale),
            **plan.constants,
            **options,
        )
        return grad_qkv, grad_of_table(partial.sum(0), table, window)


@backward.register_fake
def _(grad, qkv, table, groups, tiles, window, shift, scale):
    return torch.empty_like(qkv), torch.empty_like(table, memory_format=torch.contiguous_format)


backward.register_autograd(no_second_gradient("window_attention"))


def _save(ctx, inputs, output):
    qkv, table, groups, *ctx.options = inputs
    ctx.save_for_backward(qkv, table, groups, output[1])
    ctx.set_materialize_grads(False)  # the tiles get none


def _differentiate(ctx, grad, grad_tiles):
    # A linear layer hands back a contiguous gradient; only one that was expanded, as that of a sum is, gets copied.
    return *backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def window_attention(
    qkv: Tensor,
    table: Tensor,
    groups: Tensor | None = None,
    *,
    window: int,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Arguments and result of `headrace.kernels.window_attention.window_attention`, without float64."""
    if not qkv.is_contiguous() or (groups is not None and not groups[:1].is_contiguous()):
        raise UserError("window_attention: qkv or groups is strided; the triton implementation reads contiguous memory")
    return forward(qkv, table, groups, window, shift, qkv.shape[5] ** -0.5 if scale is None else scale)[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: Swin's and MixMIM's blocks at 192 and 224 pixels."""
    for arch in GATE:
        for name, dtype, side, window, shift, grouped, head_dim in (
            ("w7 shift bf16", "bf16", 56, 7, 3, False, 32),
            ("w7 groups bf16", "bf16", 7, 7, 0, True, 32),
            ("w6 fp16", "fp16", 48, 6, 0, False, 32),
            ("w8 d64 bf16", "bf16", 32, 8, 0, False, 64),
            ("w7 shift fp32", "fp32", 56, 7, 3, False, 32),
        ):
            tensors = {"qkv": f"*{dtype}", "bias_tiles": "*fp32", "groups": "*i8" if grouped else f"*{dtype}"}
            constants = {
                "HEIGHT": side,
                "WIDTH": side,
                "WINDOW": window,
                "SHIFT": shift,
                "GROUPED": grouped,
                "HEADS": 4,
                "D": head_dim,
                "BLOCK": 64,
            }
            for kernel, function, own in (
                ("forward", _forward_kernel, {"out": f"*{dtype}"}),
                ("backward", _backward_kernel, {"grad": f"*{dtype}", "grad_qkv": f"*{dtype}", "partial": "*fp32"}),
            ):
                options = TILES.get(arch, {}).get(_key(kernel, 32 if dtype == "fp32" else 16, head_dim), DEFAULT)
                yield Build(
                    name=f"{kernel} {name}",
                    kernel=function,
                    types={**tensors, **own, "scale": "fp32"},
                    constants=constants,
                    aligned=("qkv", "bias_tiles", "groups", "group_b", *own),
                    warps=options["num_warps"],
                    stages=options["num_stages"],
                    targets=(arch,),
                )
    yield Build(
        name="bias w7",
        kernel=_bias_kernel,
        types={"table": "*fp32", "bias_tiles": "*fp32"},
        constants={"table_h": 1, "WINDOW": 7, "SHIFT": 3, "KINDS": 4, "BLOCK": 64},
        aligned=("table", "bias_tiles"),
    )
    yield Build(
        name="table w7",
        kernel=_table_kernel,
        types={"grad_bias": "*fp32", "grad_table": "*fp32"},
        constants={"WINDOW": 7, "HEADS": 4, "BLOCK": 64, "ROWS": 16},
        aligned=("grad_bias", "grad_table"),
    )
