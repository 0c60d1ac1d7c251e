"""The drawn parameters of a batch as one tensor, a row per view: one copy to the device, and all there is to replay."""

from __future__ import annotations

import torch
from torch import Tensor

# brightness, contrast, saturation: factors; hue: shift in turns; first..fourth: which of the four comes when, -1: none;
# sigma: of the blur in pixels, 0: none; gray, solarize, flip: 0 or 1.
COLUMNS = (
    *("brightness", "contrast", "saturation", "hue"),
    *("first", "second", "third", "fourth"),
    *("gray", "sigma", "solarize", "flip"),
)


def parameter_table(
    *, jitter: Tensor, order: Tensor, gray: Tensor, sigma: Tensor, solarize: Tensor, flip: Tensor
) -> Tensor:
    """(N, 12) float32 with the columns `COLUMNS`.

    jitter, order: (N, 4), the factors of brightness, contrast, saturation and the hue shift in turns, and the operation
    (0..3) that comes 1st..4th, -1 for none; gray, sigma, solarize, flip: (N,).
    """
    return torch.cat([jitter, order, torch.stack([gray, sigma, solarize, flip], dim=1)], dim=1).to(torch.float32)
