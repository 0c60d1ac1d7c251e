"""Encoders. Each is called with images (B, 3, H, W) and gives one feature vector an image, (B, `features`).

vit.py          Vision Transformer, tiny to giant, with a path for visible tokens only
resnet.py       ResNet-18 to -152, ResNeXt, ResNet-D; `stages` gives the maps
swin.py         Swin Transformer        mixmim.py   MixMIM's        hivit.py   HiViT
transformer.py  parts of plain ones     windows.py  parts of windowed ones
external.py     any model of the timm library, and one's own
"""

from __future__ import annotations

from torch import nn

from .external import Own, Timm
from .resnet import ResNet
from .vit import ViT

BackboneConfig = ResNet.Config | ViT.Config | Timm.Config | Own


def build_backbone(config: BackboneConfig, image_size: int) -> nn.Module:
    """The encoder that a backbone's `Config` describes, for training images of this side in pixels."""
    if isinstance(config, Own):
        return config.build(image_size)
    if isinstance(config, ResNet.Config):
        return ResNet(config)
    kind = ViT if isinstance(config, ViT.Config) else Timm
    return kind(config, image_size)
