"""torchvision's ResNets as encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import nn


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385, v1.5 layout) up to the global average pool: images (B, 3, H, W) -> (B, features)."""

    @dataclass(frozen=True)
    class Config:
        name: Literal["resnet18", "resnet50"] = "resnet18"
        small_image_stem: bool = False  # a 3x3 convolution of stride 1 and no pooling, for images of 32 to 64 px
        zero_init_residual: bool = True  # every block starts as the identity

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = getattr(torchvision.models, config.name)(zero_init_residual=config.zero_init_residual)
        if config.small_image_stem:
            self.body.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.body.maxpool = nn.Identity()
        self.features = self.body.fc.in_features
        self.body.fc = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)
