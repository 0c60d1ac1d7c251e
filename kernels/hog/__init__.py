"""HOG: histograms of oriented gradients of every patch, what MaskFeat predicts.

    gx, gy     = 3x3 Sobel responses of each channel, the image continued by reflection; gx from (1, 0, -1) a row
    bin        = floor(9 atan2(gx, gy) / pi) mod 9                    nine of 20 degrees, gx first, the sign is ignored
    weight     = sqrt(gx^2 + gy^2) * g(y mod 16) * g(x mod 16)        g a Gaussian about 7.5, deviation 8, sum 1
    histogram  = sum of weights by bin over a cell of 8x8 pixels, divided by its norm over the nine bins

Each patch of 16x16 pixels has 3 channels x 9 bins x 2 x 2 cells = 108 values, in that order, the last fastest.
`triton_impl.py` has a thread for four columns of a cell and finds bins by comparing with their borders, without atan2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def hog(images: Tensor, *, impl: Choice | None = None) -> Tensor:
    """HOG targets (MaskFeat, Wei et al., arXiv 2112.09133, section 3.3 and its code's figures).

    Args:
        images: (B, C, H, W), channel-normalised; any floating dtype (float64: reference only), any strides; H and W
            multiples of 16.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (B, H/16 * W/16, C * 36) float32 (float64 for float64 images), patches row by row. No gradient.

    Raises:
        UserError: images of another size or kind, or an implementation that cannot run them.
    """
    if images.dim() != 4 or not images.is_floating_point() or images.shape[2] % 16 or images.shape[3] % 16:
        raise UserError(
            f"hog: images are {images.dtype} {tuple(images.shape)}, they must be floating (B, C, H, W) with H and W "
            "multiples of 16"
        )
    return OPERATOR(images, impl=impl)


def _shape_class(images: Tensor) -> ShapeClass:
    return images.device.type, images.dtype, images.shape[1]


def _cost(images: Tensor) -> Cost:
    """Pixels are read, 9 values are written for 64 of them; about 80 operations a pixel, most of them for the bins."""
    total = images.numel() * images.element_size() + images.numel() * 9 * 4 // 64
    return Cost(bytes=total, flops=80 * images.numel(), forward_bytes=total)


def _triton_supports(device: str, dtype: torch.dtype, channels: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the images are {dtype}"
    return None


OPERATOR = Operator(
    name="hog",
    doc="histograms of oriented gradients, a target",
    reference=reference.hog,
    shape_class=_shape_class,
    size_names=("channels",),
    gradients=(),
    cases=cases.CASES,
    cost=_cost,
    batched=("images",),
    fast=(Implementation("triton", f"{__name__}.triton_impl:hog", _triton_supports),),
)
