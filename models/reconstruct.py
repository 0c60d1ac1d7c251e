"""Predicted patches put back into pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.patch_loss.reference import patchify

UP_TO_CONTRAST = "The network predicts patterns; each hidden patch's mean and contrast are taken from the input."
THE_PIXELS = "The network predicts the pixels themselves."
AS_PREDICTED = (
    "The network predicts patterns, each patch normalised by its own mean and contrast; they are shown as predicted, "
    "around grey, since it says nothing of mean and contrast."
)


@dataclass(frozen=True)
class Restored:
    """What a masked autoencoder makes of images (B, 3, S, S) in P patches."""

    images: torch.Tensor  # hidden patches as predicted, visible ones as given
    hidden: torch.Tensor  # (B, P) bool
    error: torch.Tensor  # (B, P) what the method's loss is the mean of, over the patches that count for it


def unpatchify(patches: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """(B, L, p*p*C) -> (B, C, H, W): the inverse of `patchify`."""
    squares = patches.view(len(patches), *grid, patch_size, patch_size, -1)
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def fill_hidden(
    images: torch.Tensor,
    prediction: torch.Tensor,
    hidden: torch.Tensor,
    patch_size: int,
    *,
    normalized: bool,
    contrast: bool = True,
    target: torch.Tensor | None = None,
    absolute: bool = False,
) -> Restored:
    """images (B, C, H, W) with the patches of `hidden` (B, L) as predicted (B, L, p*p*C), in the scale of `images`.

    Where the prediction is `normalized`, a patch is known up to its mean and contrast. With `contrast`, both are taken
    from the patch of `target` (by default of the images), which the network has not seen; without, the pattern stands
    as it is predicted, in the scale of normalised images. Errors are squared, or `absolute`, as in the loss.
    """
    given, wanted = patchify(images, patch_size), patchify(images if target is None else target, patch_size)
    prediction = prediction.to(wanted.dtype)
    variance, mean = torch.var_mean(wanted, dim=-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    difference = prediction - ((wanted - mean) / deviation if normalized else wanted)
    error = (difference.abs() if absolute else difference.square()).mean(-1)
    if normalized and contrast:
        prediction = prediction * deviation + mean
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    filled = unpatchify(torch.where(hidden[:, :, None], prediction, given.to(wanted.dtype)), patch_size, grid)
    return Restored(filled, hidden, error)
