"""Encoders as what detection and segmentation stand on: maps at four strides."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...errors import UserError
from ..backbones import AnyBackboneConfig, ResNet, ViT, build_backbone
from ..backbones.external import Own, Timm
from ..backbones.hivit import HiViT


class Maps(nn.Module):
    """Four maps of an encoder: images (B, 3, H, W) -> [(B, channels[i], H / s, W / s)], s = 4, 8, 16, 32.

    H and W are multiples of `multiple`. A plain ViT has one stride, which transposed convolutions and a pooling turn
    into four. `narrow`: of its last map alone, with fewer channels where the map is finer (ViTDet, arXiv 2203.16527);
    else of four of its blocks, as wide as they are (BEiT's segmentation, arXiv 2106.08254). HiViT lacks stride 32,
    which a pooling adds.
    """

    def __init__(self, encoder: nn.Module, *, narrow: bool = False) -> None:
        super().__init__()
        self.encoder, width = encoder, encoder.features
        self.multiple, self.blocks, self.scales = 32, None, None
        if isinstance(encoder, ResNet):
            self.multiple, self.channels = 1, [width // 8, width // 4, width // 2, width]
        elif isinstance(encoder, HiViT):
            self.multiple, self.channels = 2 * encoder.patch_size, [width // 4, width // 2, width, width]
        elif isinstance(encoder, ViT):
            self.multiple, depth = 2 * encoder.patch_size, len(encoder.blocks)
            if not narrow:
                self.blocks = [max(1, depth * twelfths // 12) - 1 for twelfths in (4, 6, 8, 12)]
            half, quarter = (width // 2, width // 4) if narrow else (width, width)
            self.channels = [quarter, half, width, width]
            double = {"kernel_size": 2, "stride": 2}
            norm = LayerNorm2d(half) if narrow else nn.BatchNorm2d(half)
            finest = [nn.ConvTranspose2d(width, half, **double), norm, nn.GELU()]
            finest.append(nn.ConvTranspose2d(half, quarter, **double))
            finer = nn.ConvTranspose2d(width, half, **double)
            self.scales = nn.ModuleList([nn.Sequential(*finest), finer, nn.Identity(), nn.MaxPool2d(2)])
        else:
            self.channels = [width // 8, width // 4, width // 2, width]
        if isinstance(encoder, HiViT) or (isinstance(encoder, ViT) and (self.blocks or encoder.norm_at == "pooled")):
            encoder.norm.requires_grad_(False)  # takes no part

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(self.encoder, ResNet):
            return list(self.encoder.stages(images)[1:])
        if self.scales is None:
            maps = self.encoder.feature_maps(images)
            return maps if len(maps) == 4 else [*maps, nn.functional.max_pool2d(maps[-1], 2)]
        if self.blocks is None:
            found = self.encoder.feature_maps(images) * 4
        else:
            distinct = sorted(set(self.blocks))
            by_block = dict(zip(distinct, self.encoder.feature_maps(images, tuple(distinct))))
            found = [by_block[block] for block in self.blocks]
        return [scale(x) for scale, x in zip(self.scales, found)]


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def encoder_for_maps(config: AnyBackboneConfig | None, image_size: int, drop_path: float | None) -> nn.Module:
    """The encoder of a detector or segmenter. Raises `UserError` for one that has no maps at strides 4 to 32."""
    if config is None:
        raise UserError(
            "algorithm.backbone: missing; with scratch in place of an encoder, give algorithm.backbone.name"
        )
    if drop_path is not None:
        if not hasattr(config, "drop_path"):
            raise UserError(f"algorithm.drop_path: {config.name} has none; leave it out")
        config = replace(config, drop_path=drop_path)
    if isinstance(config, (Timm.Config, Own)):
        raise UserError(
            f"algorithm.backbone: {config.name} gives no maps at strides 4 to 32; use one of headrace's own"
        )
    if getattr(config, "small_image_stem", False):
        raise UserError(
            "algorithm.backbone: this ResNet was made for images of 32 px: its maps have strides 1 to 8, but 4 to 32 "
            "are needed; give an encoder without small_image_stem"
        )
    if isinstance(config, HiViT.Config) and config.patch_size != 16:
        raise UserError(
            f"algorithm.backbone: patches of {config.patch_size} px give other strides than 4 to 32; use 16"
        )
    return build_backbone(config, image_size)


def dilate(resnet: ResNet) -> None:
    """Turns the strides of the last two stages into dilations of 2 and 4, in place: all three later maps at H / 8.

    The first block of a stage keeps the dilation of the stage before, as in torchvision and MMSegmentation.
    """
    dilation = 1
    for stage in (resnet.body.layer3, resnet.body.layer4):
        for number, block in enumerate(stage):
            for name, module in list(block.named_modules()):
                if isinstance(module, nn.AvgPool2d):  # ResNet-D's shortcut
                    block.set_submodule(name, nn.Identity())
                elif isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
                    if module.kernel_size == (3, 3):
                        wide = dilation if number == 0 else 2 * dilation
                        module.dilation = module.padding = (wide, wide)
        dilation *= 2
