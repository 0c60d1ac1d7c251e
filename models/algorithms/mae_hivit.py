"""MAE with HiViT: masking before the first stage of a hierarchical encoder (arXiv 2205.14949 and 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ...pipelines.spec import Mask
from ..algorithm import Algorithm
from ..backbones.hivit import HiViT
from ..decoders import MAEDecoder
from ..smoke import tiny_backbone, tiny_view
from .mae import MAE


class MAEHiViT(MAE):
    """`MAE` on HiViT, whose tokens do not meet before the main stage: 3/4 of them are dropped at the very start.

    The decoder has no class token. With `fuse_stages`, as in the authors' code, it is given the inner grids of the
    first two stages beside the main stage's token (3,584 values of the base model), normalised together; without, the
    main stage's token alone.
    """

    @dataclass(frozen=True)
    class Config(MAE.Config):
        name: Literal["mae_hivit"] = "mae_hivit"
        backbone: HiViT.Config = HiViT.Config(name="hivit_base")
        decoder: MAEDecoder.Config = MAEDecoder.Config(depth=6)
        fuse_stages: bool = True

        def smoke(self) -> MAEHiViT.Config:
            return replace(
                self,
                view=tiny_view(self.view),
                backbone=tiny_backbone(self.backbone),
                decoder=MAEDecoder.Config(width=16, depth=1, heads=2),
            )

    def __init__(self, config: Config = Config()) -> None:
        Algorithm.__init__(self)
        self.config = config
        self.hivit = HiViT(config.backbone, config.view.size)
        width = self.hivit.features
        fused = 16 * width // 4 + 4 * width // 2 + width if config.fuse_stages else width
        self.norm = nn.LayerNorm(fused, eps=1e-6)
        # the encoder's own norm follows its pooling, which pre-training does without
        self.hivit.norm.requires_grad_(False)
        outputs = config.backbone.in_channels * config.backbone.patch_size**2
        self.decoder = MAEDecoder(config.decoder, fused, self.hivit.grid, outputs, class_token=False)

    @property
    def encoder(self) -> HiViT:
        return self.hivit

    def predict(self, images: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S) -> predicted patches (B, L, 3 p²) and the visible tokens (B, K, D)."""
        stages = self.hivit.stage_tokens(images, mask.keep)
        x = torch.cat([x.flatten(2) for x in stages], dim=2) if self.config.fuse_stages else stages.main
        return self.decoder(self.norm(x), mask.restore), stages.main
