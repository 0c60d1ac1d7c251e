"""Window attention's kernels (`window_kernels.py`) launched, as operators of torch's: the bias laid out in tiles once a
step, then the forward or the backward, whose partial sums for the bias are added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...errors import UserError
from ..aot import GATE, Build
from ..compiled import custom
from ..recompute import no_second_gradient
from ..tiles import processors, tile
from .window_kernels import backward_kernel, bias_kernel, forward_kernel, table_kernel

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


def grad_of_table(grad_bias: Tensor, table: Tensor, window: int) -> Tensor:
    """The gradient of the table, from that of the bias of each pair of places: (heads, N, N) float32."""
    gradient = torch.empty_like(table, memory_format=torch.contiguous_format)
    rows, heads = table.shape
    block = triton.next_power_of_2(window * window)
    table_kernel[(triton.cdiv(rows, 16) * heads,)](
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
    bias: dict[str, int]  # constants of `bias_kernel`
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
        bias_kernel[plan.tiles[:1]](table, *table.stride(), tiles, **plan.bias)
        if plan.windows:
            options = tile("window_attention", _key("forward", 8 * qkv.itemsize, qkv.shape[5]), DEFAULT)
            forward_kernel[(plan.programs * qkv.shape[4],)](
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
        backward_kernel[(plan.programs * heads,)](
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
                ("forward", forward_kernel, {"out": f"*{dtype}"}),
                ("backward", backward_kernel, {"grad": f"*{dtype}", "grad_qkv": f"*{dtype}", "partial": "*fp32"}),
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
        kernel=bias_kernel,
        types={"table": "*fp32", "bias_tiles": "*fp32"},
        constants={"table_h": 1, "WINDOW": 7, "SHIFT": 3, "KINDS": 4, "BLOCK": 64},
        aligned=("table", "bias_tiles"),
    )
    yield Build(
        name="table w7",
        kernel=table_kernel,
        types={"grad_bias": "*fp32", "grad_table": "*fp32"},
        constants={"WINDOW": 7, "HEADS": 4, "BLOCK": 64, "ROWS": 16},
        aligned=("grad_bias", "grad_table"),
    )
