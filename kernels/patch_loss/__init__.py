"""Patch loss: mean squared or absolute error between predicted and real pixels of the hidden patches.

    x_i    = the p*p*C values of patch i, in the order row, column, channel (fastest)
    t_i    = (x_i - mean(x_i)) / sqrt(var(x_i) + eps)      with the unbiased variance; t_i = x_i without `normalize`
    loss   = 1/n * sum over hidden patches i of mean((prediction_i - t_i)^2)      n hidden patches in the whole batch
             or, with `absolute`, of mean(|prediction_i - t_i|)

`reference.py` says it in plain PyTorch; `triton_impl.py` reads each hidden patch once and keeps prediction - t, or its
sign, for the backward. Visible patches are never read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference


def patch_loss(
    images: Tensor,
    prediction: Tensor,
    hidden: Tensor,
    *,
    patch_size: int,
    normalize: bool = True,
    absolute: bool = False,
    eps: float = 1e-6,
    impl: Choice | None = None,
) -> Tensor:
    """Mean error on the hidden patches: squared in MAE (He et al., 2022), absolute in SimMIM (Xie et al., 2022).

    Args:
        images: (B, C, H, W), already channel-normalised, any floating dtype and any strides; channels-last is fastest.
        prediction: (B, L, p*p*C) with L = H/p * W/p patches row by row; float32, bfloat16, float16, or float64
            (reference only); any strides, so a view without the class token needs no copy.
        hidden: (B, L) bool, True where the patch counts.
        patch_size: p, in pixels; divides H and W.
        normalize: give each target patch zero mean and unit variance.
        absolute: take absolute instead of squared errors; their gradient at 0 is 0.
        eps: added to the variance.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        The loss, a float32 scalar (float64 for a float64 prediction); 0, with zero gradient, when nothing is hidden.
        The gradient flows to `prediction` alone, and is zero for visible patches.

    Raises:
        UserError: shapes or dtypes that do not fit together, or an implementation that cannot run them.
    """
    _check(images, prediction, hidden, patch_size)
    options = {"patch_size": patch_size, "normalize": normalize, "absolute": absolute, "eps": eps}
    return OPERATOR(images, prediction, hidden, **options, impl=impl)


def _check(images: Tensor, prediction: Tensor, hidden: Tensor, patch_size: int) -> None:
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"patch_loss: patch_size {patch_size} does not divide images of {height}x{width} pixels")
    patches, values = height // patch_size * (width // patch_size), patch_size * patch_size * channels
    if prediction.shape != (batch, patches, values):
        raise UserError(
            f"patch_loss: prediction is {tuple(prediction.shape)}, but images {tuple(images.shape)} in patches of "
            f"{patch_size} need {(batch, patches, values)}"
        )
    if hidden.shape != (batch, patches) or hidden.dtype != torch.bool:
        raise UserError(
            f"patch_loss: hidden is {hidden.dtype} {tuple(hidden.shape)}, it must be torch.bool {(batch, patches)}"
        )


def _shape_class(images: Tensor, prediction: Tensor, hidden: Tensor, *, patch_size: int, **options) -> ShapeClass:
    return prediction.device.type, prediction.dtype, patch_size, images.shape[1]


def _cost(images: Tensor, prediction: Tensor, hidden: Tensor, **options) -> Cost:
    """Hidden patches are read twice (pixels, prediction), the gradient is written for all; 12 operations a value."""
    values = int(hidden.sum()) * prediction.shape[-1]
    read = values * (images.element_size() + prediction.element_size()) + hidden.numel()
    written = prediction.numel() * prediction.element_size()
    return Cost(bytes=read + written, flops=12 * values, forward_bytes=read, forward_flops=10 * values)


def _triton_supports(device: str, dtype: torch.dtype, patch_size: int, channels: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the prediction is {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter truncates to bfloat16 where a GPU rounds"
    if patch_size * patch_size * channels > 8192:
        return f"a patch of {patch_size}x{patch_size}x{channels} values is more than the 8192 that one program holds"
    return None


OPERATOR = Operator(
    name="patch_loss",
    doc="masked, per-patch normalised pixel regression",
    reference=reference.patch_loss,
    shape_class=_shape_class,
    size_names=("patch_size", "channels"),
    gradients=("prediction",),
    cases=cases.CASES,
    cost=_cost,
    batched=("images", "prediction", "hidden"),
    fast=(Implementation("triton", f"{__name__}.triton_impl:patch_loss", _triton_supports),),
)
