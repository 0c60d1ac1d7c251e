"""Encoders. Each is called with images (B, 3, H, W) and gives one feature vector an image, (B, `features`).

vit.py      Vision Transformer, tiny to base, with a path for visible tokens only
resnet.py   torchvision's ResNet-18 and ResNet-50
"""

from __future__ import annotations

from torch import nn


def build_backbone(config, image_size: int) -> nn.Module:
    """The encoder that a backbone's `Config` describes, for training images of this side in pixels."""
    from .resnet import ResNet  # torchvision is needed only by those who build it
    from .vit import ViT

    return ViT(config, image_size) if isinstance(config, ViT.Config) else ResNet(config)
