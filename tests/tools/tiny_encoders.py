"""One tiny encoder of each kind, for 64 px."""

from dataclasses import replace

import torch

from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin

PLAIN = ViT.Config(width=24, depth=2, heads=2, patch_size=8, positions="learned")
BEIT = replace(PLAIN, positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1)
DINOV2 = replace(PLAIN, pool="cls", layer_scale=0.1)
REGISTERS = replace(DINOV2, registers=3, antialias=True)
GATED = replace(DINOV2, mlp="swiglu", hidden=48)
CLIP = replace(PLAIN, pool="cls", pre_norm=True, mlp="quick_gelu", norm_eps=1e-5)
DINOV3 = replace(REGISTERS, positions="rotary", antialias=False, qkv_bias="qv", norm_eps=1e-5)
SWIN = Swin.Config(width=8, depths=(1, 2, 2, 1), heads=(1, 2, 2, 2), window=2)
MIXMIM = MixMIMTransformer.Config(width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2), windows=(8, 4, 4, 2))
HIVIT = HiViT.Config(width=32, depths=(1, 2, 2), heads=2, patch_size=8, relative_bias=True)
RESNET = ResNet.Config("resnet18", width=8)
KINDS = {
    ViT.Config: ViT,
    Swin.Config: Swin,
    MixMIMTransformer.Config: MixMIMTransformer,
    HiViT.Config: HiViT,
    ResNet.Config: ResNet,
}
SIZE = 64


def encoder(config, size=SIZE):
    """With every floating-point tensor drawn at random."""
    torch.manual_seed(0)
    kind = KINDS[type(config)]
    model = kind(config) if kind is ResNet else kind(config, size)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model
