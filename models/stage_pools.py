"""The five maps of a ResNet, pooled to about 9,000 figures each, as linear probes of every depth see them.

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning", arXiv 1905.01235.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .backbones.resnet import ResNet

# (kernel, stride, padding) of the average pools at 224 px, and the side of what they leave, which counts at other sizes
_POOLS = {
    "feat1": (10, 10, 4, 12),
    "feat2": (16, 8, 0, 6),
    "feat3": (13, 5, 0, 4),
    "feat4": (8, 3, 0, 3),
    "feat5": (6, 1, 0, 2),
}
LAYERS = tuple(_POOLS)


def pool(layer: str, maps: torch.Tensor, image_size: int) -> torch.Tensor:
    """A map of `ResNet.stages`, (B, C, H, W) -> (B, C, side, side).

    At 224 px the pools are those of the published protocol, which pad or leave out a margin; at other sizes adaptive
    ones with the same result.
    """
    kernel, stride, padding, side = _POOLS[layer]
    if image_size == 224 and maps.shape[-1] == 112 >> LAYERS.index(layer):
        return F.avg_pool2d(maps, kernel, stride, padding)
    return F.adaptive_avg_pool2d(maps, side)


def pooled_shape(resnet: ResNet, layer: str) -> tuple[int, int]:
    """(C, side) of what `pool` leaves of an image."""
    stages = [resnet.features >> shift for shift in (3, 2, 1, 0)]
    channels = [resnet.body.bn1.num_features, *stages][LAYERS.index(layer)]
    return channels, _POOLS[layer][3]


class Stage(nn.Module):
    """One map of a ResNet as an encoder: images (B, 3, S, S) -> (B, C * side²)."""

    def __init__(self, resnet: ResNet, layer: str) -> None:
        super().__init__()
        self.resnet, self.layer = resnet, layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.resnet.stages(images)[LAYERS.index(self.layer)]
        return pool(self.layer, maps, images.shape[-1]).flatten(1)
