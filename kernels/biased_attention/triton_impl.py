"""Biased attention in Triton, in tiles.

The forward goes over the keys of a block of queries with a running softmax (`tiled.py`). The backward takes one pass,
which computes each score once (`one_pass.py`), or two for more tokens than that can hold (`two_pass.py`). The gradient
of the bias is summed over a share of the images in each program; shares are then added in a fixed order. The same
launches (`launches.py`) do `headrace.kernels.segment_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ...errors import UserError
from ..aot import GATE, Build
from ..compiled import custom
from ..recompute import no_second_gradient
from .launches import CANDIDATES, DEFAULTS, EXPANDED, ONE_PASS, TILES, run_backward, run_forward, shape_constants
from .one_pass import backward_kernel, bias_gradient_kernel
from .tiled import bias_kernel, forward_kernel
from .two_pass import keys_kernel, queries_kernel

__all__ = ["CANDIDATES", "TILES", "biased_attention", "builds"]


@custom("biased_attention")
def forward(qkv: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """-> (B, N, heads, D); logarithm of the softmax's sums (B, heads, N)."""
    return run_forward("biased_attention", qkv, bias, scale)


@forward.register_fake
def _(qkv, bias, scale):
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty(batch, tokens, heads, head_dim), qkv.new_empty(batch, heads, tokens, dtype=torch.float32)


@custom("biased_attention_backward")
def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """-> gradients of qkv and bias; `grad` is contiguous."""
    grad_qkv, grad_bias = run_backward("biased_attention", grad, qkv, bias, out, logsum, scale)
    return grad_qkv, grad_bias.to(bias.dtype)


@backward.register_fake
def _(grad, qkv, bias, out, logsum, scale):
    return torch.empty_like(qkv), torch.empty_like(bias)


backward.register_autograd(no_second_gradient("biased_attention"))


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
    """The builds of forward and backward for one shape."""
    data = f"*{dtype}"
    first = {"qkv": data, "tiles": "*fp32", "segments": "*i32" if constants["WINDOW"] else data}
    above = {"grad": data, "grad_qkv": data}
    forward = {"out": data, "logsum": "*fp32"}
    kernels = {
        "forward": (forward_kernel, forward),
        "backward": (backward_kernel, {**forward, **above, "unfinished": "*fp32", "partial": "*fp32"}),
        "queries": (queries_kernel, {**forward, **above, "delta": "*fp32", "partial": "*fp32"}),
        "keys": (keys_kernel, {"logsum": "*fp32", "delta": "*fp32", **above}),
    }
    launched = ("forward", "backward") if constants["TOKENS"] <= ONE_PASS else ("queries", "keys")
    for arch in GATE:
        for kernel in launched:
            function, own = kernels[kernel]
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
                types={**first, **own, "scale": "fp32"},
                constants={**constants, **fixed, "QUERIES": options["QUERIES"], "KEYS": options["KEYS"]},
                aligned=(*first, *own),
                warps=options["num_warps"],
                stages=options["num_stages"],
                targets=(arch,),
            )


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: BEiT's and HiViT's blocks at 224 pixels, BEiT's backward at 384."""
    for name, tokens, dtype, head_dim in (
        ("n197 d64", 197, "bf16", 64),
        ("n196 d32", 196, "fp16", 32),
        ("n197 d64", 197, "fp32", 64),
        ("n577 d64", 577, "bf16", 64),
        ("n577 d64", 577, "fp32", 64),
    ):
        yield from tiled_builds(name, dtype, shape_constants(tokens, tokens, 0, 12, head_dim), groups=1)
    yield from bias_builds("n197", shape_constants(197, 197, 0, 12, 64), groups=1)


def bias_builds(name: str, constants: dict[str, int], groups: int) -> Iterator[Build]:
    """The builds that lay out the bias for one shape, and add up its gradient."""
    fixed = {key: constants[key] for key in ("PITCH", "TOKENS", "WINDOW", "HEADS")} | EXPANDED
    segments = "*i32" if constants["WINDOW"] else "*fp32"
    for kind, kernel, types, own in (
        ("bias", bias_kernel, {"bias": "*fp32", "tiles": "*fp32"}, {"TRANSPOSED": False}),
        ("bias gradient", bias_gradient_kernel, {"partial": "*fp32", "grad_bias": "*fp32"}, {"GROUPS": groups}),
    ):
        yield Build(
            name=f"{kind} {name}",
            kernel=kernel,
            types={**types, "segments": segments},
            constants={**fixed, **own},
            aligned=("segments", *types),
        )
