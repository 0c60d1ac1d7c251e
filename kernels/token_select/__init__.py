"""Token selection: the visible patches of an image, and tokens put back among mask tokens.

    visible_patches   (B, C, H, W), keep (B, K)  ->  (B, K, C, p, p), the pixels of the kept patches alone
    token_select      out_bi = tokens_b,restore_bi  if restore_bi < K, else mask_token;  + positions_i

With `visible_patches` a masked encoder embeds a quarter of the image, by one product of (K, C p p) with the weights of
its patch embedding; positions belong to them as `positions[keep]`. It is plain PyTorch: indexing a view of the image
already reads the kept pixels alone, in one kernel.

`token_select` is the operator, MAE's re-assembly before the decoder. `triton_impl.py` writes each output token once,
class tokens in front included, instead of expanding, joining, gathering, adding and joining again; `reference.py` does
that. The gradient of the mask token is a sum in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def visible_patches(images: Tensor, keep: Tensor, patch_size: int) -> Tensor:
    """The patches that an encoder of visible patches embeds (MAE, He et al., arXiv 2111.06377, section 3).

    Args:
        images: (B, C, H, W), any dtype and strides.
        keep: (B, K) int64 patch numbers, row by row over the image.
        patch_size: p, in pixels; divides H and W.

    Returns:
        (B, K, C, p, p): `flatten(2)` meets the weights of a convolution of stride p, `weight.flatten(1)`.

    Raises:
        UserError: a patch size that does not divide the image, or a `keep` of another batch.
    """
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"token_select: patch_size {patch_size} does not divide images of {height}x{width} pixels")
    if keep.dim() != 2 or len(keep) != batch:
        raise UserError(f"token_select: keep is {tuple(keep.shape)}, it must be ({batch}, visible patches)")
    columns = width // patch_size
    grid = images.unflatten(3, (columns, patch_size)).unflatten(2, (height // patch_size, patch_size))
    own = torch.arange(batch, device=images.device)[:, None]
    return grid.permute(0, 2, 4, 1, 3, 5)[own, keep // columns, keep % columns]


def token_select(
    tokens: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    restore: Tensor,
    *,
    prefix: int = 0,
    impl: Choice | None = None,
) -> Tensor:
    """Visible tokens back at their places, mask tokens at the others, positions added (MAE, arXiv 2111.06377).

    Args:
        tokens: (B, prefix + K, D); float32, bfloat16, float16, or float64 (reference only); any strides.
        mask_token: (D,), any floating dtype.
        positions: (L, D), likewise.
        restore: (B, L) int64: place i takes visible token restore_bi, or the mask token from K on. Each row is a
            permutation of 0..L-1, as `Mask.restore` is; of anything else the gradient is undefined.
        prefix: class tokens in front, which stay there as they are.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, prefix + L, D), in the dtype that the sum of the three has. Gradients flow to all three.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    batch, count, width = tokens.shape
    if restore.dim() != 2 or len(restore) != batch or restore.dtype != torch.int64:
        raise UserError(
            f"token_select: restore is {restore.dtype} {tuple(restore.shape)}, it must be torch.int64 ({batch}, places)"
        )
    if not 0 <= prefix <= count or count - prefix > restore.shape[1]:
        raise UserError(
            f"token_select: {count} tokens, {prefix} of them in front, do not fit {restore.shape[1]} places"
        )
    if mask_token.shape != (width,) or positions.shape != (restore.shape[1], width):
        raise UserError(
            f"token_select: mask_token {tuple(mask_token.shape)} and positions {tuple(positions.shape)} must be "
            f"{(width,)} and {(restore.shape[1], width)}"
        )
    return OPERATOR(tokens, mask_token, positions, restore, prefix=prefix, impl=impl)


def _shape_class(tokens: Tensor, *others: Tensor, **options) -> ShapeClass:
    return tokens.device.type, tokens.dtype, tokens.shape[2]


def _cost(tokens: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor, *, prefix: int) -> Cost:
    """Tokens are read and output written; the backward reads as much as that wrote and the other way round."""
    size = reference.result_dtype(tokens, mask_token, positions).itemsize
    written = len(tokens) * (prefix + restore.shape[1]) * tokens.shape[2]
    once = tokens.numel() * tokens.element_size() + written * size + restore.numel() * restore.element_size()
    return Cost(bytes=2 * once, flops=2 * written, forward_bytes=once, forward_flops=written)


def _triton_supports(device: str, dtype: torch.dtype, width: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the tokens are {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter truncates to bfloat16 where a GPU rounds"
    if width > 8192:
        return f"tokens of {width} values are more than the 8192 that one program holds"
    return None


OPERATOR = Operator(
    name="token_select",
    doc="visible tokens back among mask tokens, with positions",
    reference=reference.token_select,
    shape_class=_shape_class,
    size_names=("width",),
    gradients=("tokens", "mask_token", "positions"),
    cases=cases.CASES,
    cost=_cost,
    batched=("tokens", "restore"),
    fast=(Implementation("triton", f"{__name__}.triton_impl:token_select", _triton_supports),),
)
