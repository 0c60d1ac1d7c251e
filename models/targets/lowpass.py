"""Images without their high frequencies: what PixMIM (Liu et al., arXiv 2303.02416) predicts."""

from __future__ import annotations

import torch


def low_pass(images: torch.Tensor, radius: float) -> torch.Tensor:
    """(B, C, H, W) float32 of non-negative values -> the same, frequencies beyond an ideal disc of `radius` removed.

    The disc's centre ((H - 1) / 2, (W - 1) / 2) lies half a step beside frequency 0, so what comes back is complex;
    its modulus is taken, as in the authors' code.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    disc = y[:, None].square() + x.square() <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(images.float()) * torch.fft.ifftshift(disc)).abs()
