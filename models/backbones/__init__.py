"""Encoders. Each is called with images (B, 3, H, W) and gives one feature vector an image, (B, `features`).

vit.py          Vision Transformer, tiny to giant, with a path for visible tokens only
resnet.py       ResNet-18 to -152, ResNeXt, ResNet-D; `stages` gives the maps
capi.py         CAPI's
swin.py         Swin Transformer        mixmim.py   MixMIM's        hivit.py   HiViT
transformer.py  parts of plain ones     windows.py  parts of windowed ones
external.py     any model of the timm library, and one's own
low_rank.py     matrices that learn beside given ones
"""

from __future__ import annotations

from torch import nn

from ...schema.bounds import require
from .external import Own, Timm
from .hivit import HiViT
from .mixmim import MixMIMTransformer
from .resnet import ResNet
from .swin import Swin
from .vit import ViT

BackboneConfig = ResNet.Config | ViT.Config | Timm.Config | Own  # what any method can train
AnyBackboneConfig = BackboneConfig | Swin.Config | MixMIMTransformer.Config | HiViT.Config  # what can be evaluated
_KINDS = {kind.Config: kind for kind in (ViT, Timm, Swin, MixMIMTransformer, HiViT)}


def build_backbone(config: AnyBackboneConfig, image_size: int) -> nn.Module:
    """The encoder that a backbone's `Config` describes, for training images of this side in pixels.

    Raises `UserError` for numbers that a recipe could not hold.
    """
    require(config)
    if isinstance(config, Own):
        return config.build(image_size)
    return ResNet(config) if isinstance(config, ResNet.Config) else _KINDS[type(config)](config, image_size)
