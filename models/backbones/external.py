"""Backbones of the timm library: ``backbone: {name: timm, model: convnext_tiny}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...errors import UserError


class Timm(nn.Module):
    """A timm model without its classifier: images (B, 3, H, W) -> (B, features), pooled as timm pools it."""

    @dataclass(frozen=True)
    class Config:
        name: Literal["timm"] = "timm"
        model: str = "resnet50"  # as in timm.list_models(); weights are random

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise UserError(f"backbone.model: {config.model} needs the timm package; pip install timm") from None
        if config.model not in timm.list_models():
            raise UserError(f"backbone.model: timm has no model {config.model!r}; see timm.list_models()")
        try:
            self.body = timm.create_model(config.model, num_classes=0, img_size=image_size)
        except TypeError:  # convolutional networks take any size and are not told one
            self.body = timm.create_model(config.model, num_classes=0)
        self.features = self.body.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)
