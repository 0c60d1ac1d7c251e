"""PixMIM: Rethinking Pixel Reconstruction in Masked Image Modeling (Liu et al., arXiv 2303.02416)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...pipelines.spec import ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Positive
from ..targets.lowpass import low_pass
from .mae import MAE


class PixMIM(MAE):
    """`MAE` whose targets have lost their high frequencies, and whose crops keep most of the image."""

    @dataclass(frozen=True)
    class Config(MAE.Config):
        name: Literal["pixmim"] = "pixmim"
        view: ViewSpec = view("pixmim")
        radius: Positive = 40.0  # of the frequencies that are kept, in cycles across an image

    def target(self, images: torch.Tensor) -> torch.Tensor:
        view = self.config.view
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (view.mean, view.std))
        return (low_pass(images.float() * std + mean, self.config.radius) - mean) / std
