"""What turns maps into scores of classes for every pixel: FCN and UPerNet, as MMSegmentation has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch normalisation, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class FCNHead(nn.Module):
    """`convs` convolutions on one map (B, inputs, h, w), and a classifier: (B, classes, h, w) (arXiv 1411.4038).

    `concat`: the map meets the result once more before the classifier.
    """

    def __init__(
        self, inputs: int, channels: int, classes: int, *, convs: int = 2, concat: bool = True, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv(channels if i else inputs, channels, 3) for i in range(convs)))
        self.join = conv(inputs + channels, channels, 3) if concat else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convs(x)
        if self.join is not None:
            y = self.join(torch.cat([x, y], 1))
        return self.classifier(self.dropout(y))


class UPerHead(nn.Module):
    """UPerNet (arXiv 1807.10221): pyramid pooling on the last map, a feature pyramid over all, joined at the finest.

    Four maps (B, inputs[i], h / 2^i, w / 2^i) -> (B, classes, h, w).
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        classes: int,
        *,
        dropout: float = 0.1,
        pools: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.pooled = nn.ModuleList(conv(inputs[-1], channels, 1) for _ in pools)
        self.bottleneck = conv(inputs[-1] + len(pools) * channels, channels, 3)
        self.laterals = nn.ModuleList(conv(width, channels, 1) for width in inputs[:-1])
        self.smooth = nn.ModuleList(conv(channels, channels, 3) for _ in inputs[:-1])
        self.join = conv(len(inputs) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        last = maps[-1]
        pooled = [block(F.adaptive_avg_pool2d(last, side)) for side, block in zip(self.pools, self.pooled)]
        levels = [self.bottleneck(torch.cat([last, *(enlarged(x, last.shape[-2:]) for x in pooled)], 1))]
        for x, lateral in zip(reversed(maps[:-1]), reversed(self.laterals)):
            levels.insert(0, lateral(x) + enlarged(levels[0], x.shape[-2:]))
        levels[:-1] = [block(x) for x, block in zip(levels[:-1], self.smooth)]
        size = levels[0].shape[-2:]
        joined = self.join(torch.cat([enlarged(x, size) for x in levels], 1))
        return self.classifier(self.dropout(joined))


def classifier(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def enlarged(x: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)
