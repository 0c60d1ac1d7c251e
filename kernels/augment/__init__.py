"""Augmentation on the device: uint8 crops and their drawn parameters -> finished views.

Order of operations: colour jitter (each sample's four parts in its own order, clamped to [0, 1] in between), grayscale,
Gaussian blur, solarise, horizontal flip, normalise. Contrast blends with the mean luma of the image as it stands at
that point; hue turns through HSV. Semantics of torchvision's float tensors.
"""

from __future__ import annotations

import torch

from .reference import augment_reference, blur_taps

__all__ = ["augment", "blur_taps"]


def augment(
    pixels: torch.Tensor,
    *,
    flip: torch.Tensor,
    jitter: torch.Tensor,
    order: torch.Tensor,
    gray: torch.Tensor,
    sigma: torch.Tensor,
    solarize: torch.Tensor,
    sigma_max: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """(N, 3, S, S) of `dtype` in channels-last memory.

    pixels: (N, S, S, 3) uint8 on the device. Parameters of each sample, on the CPU: flip, gray, solarize (N,) bool;
    jitter (N, 4) float32 factors of brightness, contrast, saturation and hue shift in turns; order (N, 4) int8, the
    operation that comes 1st..4th, -1 for none; sigma (N,) float32 in pixels, 0 for no blur. `sigma_max` fixes the
    blur's window (`blur_taps`); `mean` and `std` are those of values in [0, 1].
    """
    return augment_reference(
        pixels,
        flip=flip,
        jitter=jitter,
        order=order,
        gray=gray,
        sigma=sigma,
        solarize=solarize,
        sigma_max=sigma_max,
        mean=mean,
        std=std,
        dtype=dtype,
    )
