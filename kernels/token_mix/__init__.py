"""Token mixing: each image lends its tokens to its partner, the image as far from the end of the batch (MixMIM).

    mix         out_bi = x_{B-1-b},i  where mask_i, else x_bi;  + positions_i        two images in one grid
    unmix       out_bi = y1_bi  where mask_i, else y2_{B-1-b},i          y1, y2: the halves of what is decoded
    separate    h where not mask, else the mask token; and the other way round; each + positions; one after the other

With one mask for the whole batch mixing only moves tokens: every token of every image occurs once, and the gradient is
the same move backwards. `unmix` is the first half of such a move too, with the mask inverted, so one operator serves
both; its kernel reads and writes each value once. `separate` works on the coarsest grid, 49 tokens an image, and stays
plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def mix(x: Tensor, mask: Tensor, positions: Tensor | None = None, *, impl: Choice | None = None) -> Tensor:
    """Replace masked tokens by the partner's (MixMAE, Liu et al., arXiv 2205.13137, section 3.1).

    Args:
        x: (B, N, D), B even; float32, bfloat16, float16, or float64 (reference only); any strides.
        mask: (1, N) bool, shared by the batch, True where the partner's token comes in.
        positions: (N, D), added to the result, any floating dtype; None adds nothing.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, N, D), in the dtype that x + positions has. Gradients flow to both.

    Raises:
        UserError: an odd batch, whose middle image would be its own partner; shapes that do not fit together, or an
            implementation that cannot run them.
    """
    _check(x, mask)
    if positions is not None and positions.shape != x.shape[1:]:
        raise UserError(f"token_mix: positions are {tuple(positions.shape)}, they must be {tuple(x.shape[1:])}")
    return OPERATOR(x, positions, mask, halve=False, impl=impl)


def unmix(decoded: Tensor, mask: Tensor, *, impl: Choice | None = None) -> Tensor:
    """Each image's predictions of its hidden places: those of its own stream, and of its partner's (section 3.3).

    Args:
        decoded: (2B, N, D), what became of the two streams of `separate`; dtypes as for `mix`.
        mask: as for `mix`.

    Returns:
        (B, N, D): a prediction for every place of every image.
    """
    _check(decoded, mask)
    return OPERATOR(decoded, None, ~mask, halve=True, impl=impl)


def separate(tokens: Tensor, mask_token: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """The two images in each mixed grid, one after the other, mask tokens where the other one was (section 3.2).

    tokens (B, N, D), mask_token (D,), mask (1, N), positions (N, D) -> (2B, N, D).
    """
    partner = mask[..., None]
    mask_token = mask_token.to(tokens.dtype)
    return torch.cat([torch.where(partner, mask_token, tokens), torch.where(partner, tokens, mask_token)]) + positions


def _check(x: Tensor, mask: Tensor) -> None:
    if len(x) % 2:
        raise UserError(f"token_mix: a batch of {len(x)} has no pairs; it must be even")
    if mask.shape != (1, x.shape[1]) or mask.dtype != torch.bool:
        raise UserError(
            f"token_mix: mask is {mask.dtype} {tuple(mask.shape)}, it must be torch.bool (1, {x.shape[1]}), one for "
            "the whole batch"
        )


def _shape_class(x: Tensor, *others: Tensor | None, **options) -> ShapeClass:
    return x.device.type, x.dtype, x.shape[2]


def _cost(x: Tensor, positions: Tensor | None, mask: Tensor, *, halve: bool) -> Cost:
    """Half or all of x is read and written; the backward does the same."""
    moved = x.numel() // 2 if halve else x.numel()
    size = reference.result_dtype(x, positions).itemsize
    forward = moved * (x.element_size() + size)
    backward = moved * size + x.numel() * x.element_size()
    return Cost(bytes=forward + backward, flops=moved, forward_bytes=forward, forward_flops=moved)


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
    name="token_mix",
    doc="tokens of image pairs exchanged by a shared mask, and put back",
    reference=reference.token_mix,
    shape_class=_shape_class,
    size_names=("width",),
    gradients=("x",),
    cases=cases.CASES,
    cost=_cost,
    batched=("x",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:token_mix", _triton_supports),),
)
