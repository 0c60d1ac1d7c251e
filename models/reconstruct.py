"""Predicted patches put back into pictures."""

from __future__ import annotations

import torch

from ..kernels.patch_loss.reference import patchify

UP_TO_CONTRAST = "The network predicts patterns; each hidden patch's mean and contrast are taken from the input."


def unpatchify(patches: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """(B, L, p*p*C) -> (B, C, H, W): the inverse of `patchify`."""
    squares = patches.view(len(patches), *grid, patch_size, patch_size, -1)
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def fill_hidden(
    images: torch.Tensor, prediction: torch.Tensor, hidden: torch.Tensor, patch_size: int, *, normalized: bool
) -> torch.Tensor:
    """images (B, C, H, W) with the patches of `hidden` (B, L) as predicted (B, L, p*p*C), in the scale of `images`.

    Where the prediction is `normalized`, a patch is known up to its mean and contrast; both are then taken from the
    original patch, which the network has not seen.
    """
    target = patchify(images, patch_size)
    prediction = prediction.to(target.dtype)
    if normalized:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    return unpatchify(torch.where(hidden[:, :, None], prediction, target), patch_size, grid)
