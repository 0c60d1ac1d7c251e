"""ResNets of torchvision's blocks as encoders, with what self-supervised methods ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...schema.bounds import Count

_SIZES = {  # kind of block, blocks of each stage, groups, width of a group where the stage is 64 wide
    "resnet18": ("BasicBlock", (2, 2, 2, 2), 1, 64),
    "resnet34": ("BasicBlock", (3, 4, 6, 3), 1, 64),
    "resnet50": ("Bottleneck", (3, 4, 6, 3), 1, 64),
    "resnet101": ("Bottleneck", (3, 4, 23, 3), 1, 64),
    "resnet152": ("Bottleneck", (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": ("Bottleneck", (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": ("Bottleneck", (3, 4, 23, 3), 32, 8),
}


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385, v1.5 layout) up to the global average pool: images (B, 3, H, W) -> (B, features).

    Parameter names under ``body.`` are torchvision's, so its weights load once ``fc`` is dropped.
    """

    @dataclass(frozen=True)
    class Config:
        name: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"
        ] = "resnet18"
        width: Count = 64  # channels of the stem; 128 and 256 are the "2x" and "4x" of SimCLR, BYOL and SwAV
        v1d: bool = False  # a stem of three 3x3 convolutions, and shortcuts that average before they project
        small_image_stem: bool = False  # a 3x3 convolution of stride 1 and no pooling, for images of 32 to 64 px
        sobel: bool = False  # edges instead of colours: the stem sees two derivatives of the grey image
        zero_init_residual: bool = True  # every block starts as the identity
        in_channels: Count = 3  # of the images

        def __post_init__(self) -> None:
            if self.v1d and (self.small_image_stem or self.sobel):
                raise ValueError("v1d: has a stem of its own; it goes with neither small_image_stem nor sobel")
            if self.width < 8 or self.width % 8:
                raise ValueError(f"width: a multiple of 8, not {self.width}")

    def __init__(self, config: Config) -> None:
        super().__init__()
        from torchvision.models import resnet as blocks  # only those who build a ResNet need torchvision

        kind, depths, groups, group_width = _SIZES[config.name]
        block, width = getattr(blocks, kind), config.width
        self.front = Sobel() if config.sobel else nn.Identity()
        self.body = nn.Sequential()
        self.body.conv1 = _stem(config)
        self.body.bn1 = nn.BatchNorm2d(width)
        self.body.relu = nn.ReLU(inplace=True)
        self.body.maxpool = nn.Identity() if config.small_image_stem else nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for i, depth in enumerate(depths):
            planes, stage = width * 2**i, nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                shortcut = _shortcut(channels, planes * block.expansion, stride, config.v1d) if j == 0 else None
                stage.append(block(channels, planes, stride, shortcut, groups, group_width))
                channels = planes * block.expansion
            self.body.add_module(f"layer{i + 1}", stage)
        self.features = channels
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif config.zero_init_residual and isinstance(module, block):
                nn.init.zeros_((module.bn3 if kind == "Bottleneck" else module.bn2).weight)

    def stages(self, images: torch.Tensor, count: int = 4) -> tuple[torch.Tensor, ...]:
        """Maps of the stem, after its ReLU and before pooling (B, width, H/2, W/2), and of the first `count` stages."""
        body = self.body
        maps = [body.relu(body.bn1(body.conv1(self.front(images))))]
        x = body.maxpool(maps[0])
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4)[:count]:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stages(images)[-1].mean((2, 3))


class Sobel(nn.Module):
    """Mean of the colours, then its horizontal and vertical derivative: (B, 3, H, W) -> (B, 2, H, W); not learned."""

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("kernels", torch.stack([across, across.T])[:, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images.mean(1, keepdim=True), self.kernels.to(images.dtype), padding=1)


def _stem(config: ResNet.Config) -> nn.Module:
    channels, width = 2 if config.sobel else config.in_channels, config.width
    if config.small_image_stem:
        return nn.Conv2d(channels, width, 3, padding=1, bias=False)
    if not config.v1d:
        return nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    layers: list[nn.Module] = []  # ResNet-D (arXiv 1812.01187, section 4.1)
    for inputs, outputs, stride in ((channels, width // 2, 2), (width // 2, width // 2, 1)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width // 2, width, 3, padding=1, bias=False))


def _shortcut(channels: int, outputs: int, stride: int, v1d: bool) -> nn.Module | None:
    if stride == 1 and channels == outputs:
        return None
    average = v1d and stride == 2
    projection = nn.Conv2d(channels, outputs, 1, 1 if average else stride, bias=False)
    first = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if average else []
    return nn.Sequential(*first, projection, nn.BatchNorm2d(outputs))
