"""Patch loss in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, L, p*p*C): patches row by row; inside a patch row, column, channel, the channel fastest."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, rows * columns, patch_size * patch_size * channels)


def patch_loss(
    images: Tensor,
    prediction: Tensor,
    hidden: Tensor,
    *,
    patch_size: int,
    normalize: bool = True,
    absolute: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Arguments and result of `headrace.kernels.patch_loss.patch_loss`; a float64 prediction is judged in float64."""
    precision = torch.promote_types(prediction.dtype, torch.float32)
    target = patchify(images.detach(), patch_size).to(precision)
    if normalize:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased
        target = (target - mean) / (variance + eps).sqrt()
    # Selected first: what is predicted for a visible patch, infinities included, must not reach the gradient.
    error = torch.where(hidden[..., None], prediction.to(precision) - target, 0)
    return (error.abs() if absolute else error.square()).mean(dim=-1).sum() / hidden.sum().clamp(min=1)
