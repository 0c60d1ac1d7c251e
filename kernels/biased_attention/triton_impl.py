"""Biased attention in Triton, in tiles; these launches also do `headrace.kernels.segment_attention`.

Three passes. The forward goes over the keys of a block of queries with a running softmax. In the backward one pass
makes the gradients of queries and bias, one that of keys and values. A program of the first takes a share of the images
and adds up the gradient of one tile of the bias over them in registers, so that it is stored once per share; shares are
then added in a fixed order. The program of a row's first tile goes over all keys and completes the row's gradient; the
others do their own tile alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ...errors import UserError
from ..aot import GATE, Build
from ..tiles import processors, tile
from .tiled import bias_kernel, forward_kernel, keys_kernel, queries_kernel

PROGRAMS = 2  # a multiprocessor, of the backward's first pass
EXPANDED = {"ROWS": 32, "COLUMNS": 64}  # of the dense bias, what a program writes


def _tiles(queries: int, keys: int, warps: int, stages: int = 1) -> dict[str, int]:
    return {"QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages}


# Chosen for the absence of spilled registers; what is left of them is in resources.json. Tiles of 128 keys spill on
# every GPU but sm_100; in 32 bit, tiles of 64x64 need up to 11 KiB of stack.
DEFAULTS = {
    "forward 16bit": _tiles(64, 64, 4),
    "queries 16bit": _tiles(64, 64, 8),
    "keys 16bit": _tiles(64, 64, 4),
    "forward 32bit": _tiles(32, 32, 4),
    "queries 32bit": _tiles(32, 32, 4),
    "keys 32bit": _tiles(32, 32, 4),
}
_NVIDIA = {
    "forward 16bit d32": _tiles(64, 64, 4, 2),
    "forward 16bit d64": _tiles(64, 64, 4, 2),
    "queries 32bit d64": _tiles(32, 64, 8),
}
_SM_80 = {
    "queries 16bit d32": _tiles(64, 32, 4),
    "queries 16bit d64": _tiles(32, 64, 4),
    "keys 16bit d64": _tiles(32, 64, 4),
}
TILES = {"sm_80": {**_NVIDIA, **_SM_80}, "sm_90": _NVIDIA, "sm_100": _NVIDIA}
CANDIDATES = {
    kernel: [
        _tiles(queries, keys, warps, stages)
        for queries, keys in ((32, 64), (64, 32), (64, 64), (64, 128), (128, 64))
        for warps in (4, 8)
        for stages in (1, 2)
    ]
    for kernel in ("forward", "queries", "keys")
}


def _tile(op: str, kernel: str, qkv: Tensor) -> dict[str, int]:
    precision = f"{kernel} {8 * qkv.itemsize}bit"
    return tile(op, f"{precision} d{qkv.shape[4]}", DEFAULTS[precision])


def run_forward(
    op: str, qkv: Tensor, bias: Tensor, scale: float, segments: Tensor | None = None, window: int = 0
) -> tuple[Tensor, Tensor]:
    """qkv (B, L, 3, heads, D) -> output (B, L, heads, D), logarithm to base 2 of the softmax's sums (B, heads, L).

    `bias` is (heads, L, L), or with segments (windows, G, 2, N) that by relative position (heads, (2w-1)^2).
    """
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, length, heads, head_dim)
    logsum = torch.empty(batch, heads, length, dtype=torch.float32, device=qkv.device)
    count, tokens = (1, length) if segments is None else (segments.shape[0] * segments.shape[1], segments.shape[3])
    if out.numel():
        options = _tile(op, "forward", qkv)
        shape = shape_constants(length, tokens, window, heads, head_dim, options)
        grid = (batch * count * triton.cdiv(tokens, options["QUERIES"]) * heads,)
        with torch.cuda.device_of(qkv):
            forward_kernel[grid](
                qkv,
                _dense(bias, segments, count, shape),
                qkv if segments is None else segments,
                out,
                logsum,
                batch,
                count,
                scale,
                **shape,
                **options,
                enable_fp_fusion=True,
            )
    return out, logsum


def run_backward(
    op: str,
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    logsum: Tensor,
    scale: float,
    segments: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """-> the gradient of qkv; that of the bias of each pair of places, (heads, N, N) float32."""
    batch, length, _, heads, head_dim = qkv.shape
    windows, groups, _, tokens = (1, 1, 0, length) if segments is None else segments.shape
    grad_qkv = torch.empty_like(qkv)
    if not qkv.numel():
        return grad_qkv, torch.zeros(heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
    delta = torch.empty_like(logsum)
    options, others = _tile(op, "queries", qkv), _tile(op, "keys", qkv)
    constants = shape_constants(length, tokens, window, heads, head_dim, options, others)
    blocks, columns = triton.cdiv(tokens, options["QUERIES"]), triton.cdiv(tokens, options["KEYS"])
    # Segments fill about as many blocks as the tokens they share; the programs of other blocks end at once. The
    # interpreter gets few programs, that each of them has several images.
    programs = PROGRAMS * processors(qkv.device, 1)
    shares = min(batch, max(1, programs // (windows * blocks * heads)))
    # Pairs of different segments are nobody's to write.
    allocate = torch.empty if segments is None else torch.zeros
    partial = allocate(shares, windows, heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
    tokens_of = qkv if segments is None else segments
    with torch.cuda.device_of(qkv):
        queries_kernel[(shares * windows * groups * columns * blocks * heads,)](
            qkv,
            _dense(bias, segments, windows * groups, constants),
            tokens_of,
            out,
            logsum,
            grad,
            grad_qkv,
            delta,
            partial,
            batch,
            shares,
            windows * groups,
            scale,
            GROUPS=groups,
            **constants,
            **options,
            enable_fp_fusion=True,
        )
        keys_kernel[(batch * windows * groups * triton.cdiv(tokens, others["KEYS"]) * heads,)](
            qkv,
            _dense(bias, segments, windows * groups, constants, transposed=True),
            tokens_of,
            logsum,
            delta,
            grad,
            grad_qkv,
            batch,
            windows * groups,
            scale,
            **constants,
            **others,
            enable_fp_fusion=True,
        )
    return grad_qkv, partial.sum((0, 1))


def _dense(
    bias: Tensor, segments: Tensor | None, count: int, shape: dict[str, int], *, transposed: bool = False
) -> Tensor:
    """(segments, heads, PITCH, PITCH) float32: what `bias_kernel` says. Once per call, so that no tile gathers."""
    pitch, heads = shape["PITCH"], shape["HEADS"]
    tiles = torch.empty(count, heads, pitch, pitch, dtype=torch.float32, device=bias.device)
    constants = {name: shape[name] for name in ("PITCH", "TOKENS", "WINDOW", "HEADS")}
    grid = (count * heads * (pitch // EXPANDED["ROWS"]) * (pitch // EXPANDED["COLUMNS"]),)
    bias_kernel[grid](
        bias, bias if segments is None else segments, tiles, **constants, **EXPANDED, TRANSPOSED=transposed
    )
    return tiles


def shape_constants(
    length: int, tokens: int, window: int, heads: int, head_dim: int, *tiles: dict[str, int]
) -> dict[str, int]:
    """`tiles` are those of all kernels that read one layout of the bias."""
    step = max([64, *(tile[side] for tile in tiles for side in ("QUERIES", "KEYS"))])
    sizes = {"SPAN": triton.next_power_of_2(tokens), "PITCH": triton.cdiv(tokens, step) * step}
    return {"MAP": length, "TOKENS": tokens, **sizes, "WINDOW": window, "HEADS": heads, "D": head_dim}


# Custom operators and no autograd.Function: torch.compile and the checks of torch.library then work without a GPU too.
@torch.library.custom_op("headrace::biased_attention", mutates_args=())
def forward(qkv: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """-> (B, N, heads, D); logarithm of the softmax's sums (B, heads, N)."""
    return run_forward("biased_attention", qkv, bias, scale)


@forward.register_fake
def _(qkv, bias, scale):
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty(batch, tokens, heads, head_dim), qkv.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("headrace::biased_attention_backward", mutates_args=())
def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """-> gradients of qkv and bias; `grad` is contiguous."""
    grad_qkv, grad_bias = run_backward("biased_attention", grad, qkv, bias, out, logsum, scale)
    return grad_qkv, grad_bias.to(bias.dtype)


@backward.register_fake
def _(grad, qkv, bias, out, logsum, scale):
    return torch.empty_like(qkv), torch.empty_like(bias)


def _save(ctx, inputs, output):
    qkv, bias, ctx.scale = inputs
    ctx.save_for_backward(qkv, bias, *output)
    ctx.set_materialize_grads(False)  # the sums get none


def _differentiate(ctx, grad, grad_logsum):
    # A linear layer hands back a contiguous gradient; only one that was expanded, as that of a sum is, gets copied.
    return *backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None


forward.register_autograd(_differentiate, setup_context=_save)


def biased_attention(qkv: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
    """Arguments and result of `headrace.kernels.biased_attention.biased_attention`, without float64."""
    if not (qkv.is_contiguous() and bias.is_contiguous()):
        raise UserError(
            "biased_attention: qkv or bias is strided and the triton implementation reads contiguous memory; a bias "
            "gathered from a table needs .contiguous() once"
        )
    return forward(qkv, bias, qkv.shape[4] ** -0.5 if scale is None else scale)[0]


def tiled_builds(name: str, dtype: str, constants: dict[str, Any], groups: int) -> Iterator[Build]:
    """The builds of the three kernels for one shape."""
    data = f"*{dtype}"
    first = {"qkv": data, "tiles": "*fp32", "segments": "*i32" if constants["WINDOW"] else data}
    own = {
        "forward": {"out": data, "logsum": "*fp32"},
        "queries": {
            "out": data,
            "logsum": "*fp32",
            "grad": data,
            "grad_qkv": data,
            "delta": "*fp32",
            "partial": "*fp32",
        },
        "keys": {"logsum": "*fp32", "delta": "*fp32", "grad": data, "grad_qkv": data},
    }
    kernels = {"forward": forward_kernel, "queries": queries_kernel, "keys": keys_kernel}
    for arch in GATE:
        for kernel, function in kernels.items():
            precision = f"{kernel} {32 if dtype == 'fp32' else 16}bit"
            options = TILES.get(arch, {}).get(f"{precision} d{constants['D']}", DEFAULTS[precision])
            fixed = {"GROUPS": groups} if kernel == "queries" else {}
            if not constants["WINDOW"]:
                fixed["segments_count"] = 1
            step = max(64, options["QUERIES"], options["KEYS"])
            fixed["PITCH"] = triton.cdiv(constants["TOKENS"], step) * step
            yield Build(
                name=f"{kernel} {name} {dtype}",
                kernel=function,
                types={**first, **own[kernel], "scale": "fp32"},
                constants={**constants, **fixed, "QUERIES": options["QUERIES"], "KEYS": options["KEYS"]},
                aligned=(*first, *own[kernel]),
                warps=options["num_warps"],
                stages=options["num_stages"],
                targets=(arch,),
            )


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: BEiT's and HiViT's blocks at 224 pixels."""
    for name, tokens, dtype, head_dim in (
        ("n197 d64", 197, "bf16", 64),
        ("n196 d32", 196, "fp16", 32),
        ("n197 d64", 197, "fp32", 64),
    ):
        yield from tiled_builds(name, dtype, shape_constants(tokens, tokens, 0, 12, head_dim), groups=1)
    yield bias_build("bias n197", shape_constants(197, 197, 0, 12, 64))


def bias_build(name: str, constants: dict[str, int]) -> Build:
    """The build that lays out the bias for one shape."""
    fixed = {key: constants[key] for key in ("PITCH", "TOKENS", "WINDOW", "HEADS")}
    return Build(
        name=name,
        kernel=bias_kernel,
        types={"bias": "*fp32", "segments": "*i32" if constants["WINDOW"] else "*fp32", "tiles": "*fp32"},
        constants={**fixed, **EXPANDED, "TRANSPOSED": False},
        aligned=("bias", "segments", "tiles"),
    )
