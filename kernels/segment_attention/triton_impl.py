"""Segment attention in Triton: the tiles of `headrace.kernels.biased_attention`, over the tokens that a table lists."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import UserError
from ..aot import Build
from ..biased_attention.launches import CANDIDATES, TILES, run_backward, run_forward, shape_constants
from ..biased_attention.triton_impl import bias_builds, tiled_builds
from ..compiled import custom
from ..recompute import no_second_gradient
from ..window_attention.triton_impl import grad_of_table

__all__ = ["CANDIDATES", "TILES", "builds", "segment_attention"]


@custom("segment_attention")
def forward(qkv: Tensor, table: Tensor, segments: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """-> (B, H, W, heads, D); logarithm of the softmax's sums (B, heads, H*W)."""
    by_head = table.t().contiguous()
    out, logsum = run_forward("segment_attention", qkv.flatten(1, 2), by_head, scale, segments, window)
    return out.reshape(*qkv.shape[:3], *qkv.shape[4:]), logsum


@forward.register_fake
def _(qkv, table, segments, window, scale):
    batch, height, width, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, height, width, heads, head_dim)
    return out, qkv.new_empty(batch, heads, height * width, dtype=torch.float32)


@custom("segment_attention_backward")
def backward(
    grad: Tensor, qkv: Tensor, table: Tensor, segments: Tensor, out: Tensor, logsum: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """-> gradients of qkv and table; `grad` is contiguous."""
    flat, by_head = qkv.flatten(1, 2), table.t().contiguous()
    grad_qkv, grad_bias = run_backward("segment_attention", grad, flat, by_head, out, logsum, scale, segments, window)
    return grad_qkv.reshape(qkv.shape), grad_of_table(grad_bias, table, window)


@backward.register_fake
def _(grad, qkv, table, segments, out, logsum, window, scale):
    return torch.empty_like(qkv), torch.empty_like(table, memory_format=torch.contiguous_format)


backward.register_autograd(no_second_gradient("segment_attention"))


def _save(ctx, inputs, output):
    qkv, table, segments, *ctx.options = inputs
    ctx.save_for_backward(qkv, table, segments, *output)
    ctx.set_materialize_grads(False)  # the sums get none


def _differentiate(ctx, grad, grad_logsum):
    # A linear layer hands back a contiguous gradient; only one that was expanded, as that of a sum is, gets copied.
    return *backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def segment_attention(
    qkv: Tensor, table: Tensor, segments: Tensor, *, window: int, scale: float | None = None
) -> Tensor:
    """Arguments and result of `headrace.kernels.segment_attention.segment_attention`, without float64."""
    if not (qkv.is_contiguous() and segments.is_contiguous()):
        raise UserError(
            "segment_attention: qkv or segments is strided; the triton implementation reads contiguous memory"
        )
    return forward(qkv, table, segments, window, qkv.shape[5] ** -0.5 if scale is None else scale)[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: MixMIM's first stage, of which the others differ in one stride; SimMIM."""
    for name, side, window, groups, dtype in (
        ("w14 56", 56, 14, 2, "bf16"),
        ("w12 48 shift", 48, 12, 4, "fp16"),
        ("w14 14", 14, 14, 2, "fp32"),
    ):
        constants = shape_constants(side * side, window * window, window, heads=4, head_dim=32)
        yield from tiled_builds(name, dtype, constants, groups)
    yield from bias_builds("w14", shape_constants(196, 196, 14, heads=4, head_dim=32), groups=2)
