"""Biased attention: self-attention over all tokens with a learned bias for each pair of them, shared by the batch.

    S_ij = scale * q_i . k_j + bias_ij
    o_i  = sum over j of softmax_j(S_ij) v_j

for each head. The bias is a matrix, so it serves any layout of tokens: BEiT's class token beside a 14x14 grid
(N = 197, one table for all blocks, gathered into a matrix once per step), HiViT's grid (N = 196). Windows inside of a
map are better served by window_attention and segment_attention, which leave the tokens where they are. Without a bias,
use torch's scaled_dot_product_attention.

`reference.py` says it in plain PyTorch; `triton_impl.py` works in tiles, stores no matrix of scores, and its gradient
of the bias has the same bits each time. `launches.py` launches the kernels: the forward's in `tiled.py`, the backward's
in `one_pass.py` for up to 256 tokens and in `two_pass.py` for more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass
from ..window_attention import attention_cost, attention_in_triton
from . import cases, reference


def biased_attention(qkv: Tensor, bias: Tensor, *, scale: float | None = None, impl: Choice | None = None) -> Tensor:
    """Attention with a bias per pair of tokens (Bao et al., BEiT: BERT Pre-Training of Image Transformers, 2022).

    Args:
        qkv: (B, N, 3, heads, D), what the linear layer for queries, keys and values returns, reshaped; contiguous.
            float32, bfloat16, float16, or float64 (reference only).
        bias: (heads, N, N), query before key, any floating dtype; contiguous. -inf hides a key from a query; a query
            with all keys hidden gets NaN.
        scale: of the products; D^-0.5 if None.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, N, heads, D), contiguous, in the dtype of `qkv`. Gradients flow to `qkv` and `bias`. Softmax and sums are in
        float32 (float64 for float64). There is no dropout of attention.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    _check(qkv, bias)
    return OPERATOR(qkv, bias, scale=scale, impl=impl)


def _check(qkv: Tensor, bias: Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise UserError(f"biased_attention: qkv is {tuple(qkv.shape)}, it must be (B, N, 3, heads, D)")
    _, tokens, _, heads, _ = qkv.shape
    if bias.shape != (heads, tokens, tokens) or not bias.is_floating_point():
        raise UserError(
            f"biased_attention: bias is {bias.dtype} {tuple(bias.shape)}, {heads} heads and {tokens} tokens need "
            f"floating point {(heads, tokens, tokens)}"
        )


def _shape_class(qkv: Tensor, bias: Tensor, **options) -> ShapeClass:
    return qkv.device.type, qkv.dtype, qkv.shape[1], qkv.shape[4]


def _cost(qkv: Tensor, bias: Tensor, **options) -> Cost:
    once = bias.numel() * bias.element_size()
    return attention_cost(qkv, qkv.numel() // 3 * qkv.shape[1], once, 2 * once)


def _triton_supports(device: str, dtype: torch.dtype, tokens: int, head_dim: int) -> str | None:
    if refused := attention_in_triton(device, dtype, head_dim):
        return refused
    if tokens > 1024:
        return f"with {tokens} tokens, more than 1024, the partial sums of the bias's gradient outgrow the rest"
    return None


OPERATOR = Operator(
    name="biased_attention",
    doc="attention with a learned bias per pair of tokens",
    reference=reference.biased_attention,
    shape_class=_shape_class,
    size_names=("tokens", "head_dim"),
    gradients=("qkv", "bias"),
    cases=cases.CASES,
    cost=_cost,
    batched=("qkv",),
    autocast=("qkv",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:biased_attention", _triton_supports),),
)
