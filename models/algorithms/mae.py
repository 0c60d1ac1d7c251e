"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al. 2021, arXiv 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from ...kernels.patch_loss import patch_loss
from ...pipelines.spec import Batch, Mask, RandomMask, ViewSpec
from ...schema.bounds import Part
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.vit import ViT
from ..decoders import MAEDecoder
from ..reconstruct import THE_PIXELS, UP_TO_CONTRAST, Restored, fill_hidden
from ..sample_losses import patch_errors
from ..smoke import tiny_backbone, tiny_view


class MAE(Algorithm):
    """Encode the visible quarter of the patches; a light decoder predicts the pixels of the hidden ones.

    Loss: mean squared error over hidden patches, each patch normalised by its own mean and standard deviation
    (`normalize_pixels`).
    """

    sample_loss = "mean squared error over its hidden patches"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["mae"] = "mae"
        view: ViewSpec = ViewSpec(size=224, scale=(0.2, 1.0), interpolation="bicubic")
        backbone: ViT.Config = ViT.Config(name="vit_base")
        decoder: MAEDecoder.Config = MAEDecoder.Config()
        mask_ratio: Part = 0.75
        normalize_pixels: bool = True

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % self.backbone.patch_size:
                raise ValueError(
                    f"view: needs one view whose size is a multiple of backbone.patch_size "
                    f"({self.backbone.patch_size}), got {self.view.count} of {self.view.size} px"
                )
            try:
                _ = self.mask
            except ValueError as fault:  # "ratio: ..."
                raise ValueError(f"mask_{fault}") from None

        def smoke(self) -> MAE.Config:
            decoder = MAEDecoder.Config(width=16, depth=1, heads=2)
            return replace(self, view=tiny_view(self.view), backbone=tiny_backbone(self.backbone), decoder=decoder)

        @property
        def mask(self) -> RandomMask:
            side = self.view.size // self.backbone.patch_size
            return RandomMask(grid=(side, side), ratio=self.mask_ratio)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.backbone, config.view.size)
        outputs = config.backbone.in_channels * config.backbone.patch_size**2
        self.decoder = MAEDecoder(config.decoder, self.vit.features, self.vit.grid, outputs)

    @property
    def encoder(self) -> ViT:
        return self.vit

    def predict(self, images: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, C, S, S) -> predicted patches (B, L, C p²) and the visible tokens (B, K, D)."""
        tokens = self.vit.tokens(images, mask.keep)
        return self.decoder(tokens, mask.restore), tokens[:, 1:]

    def target(self, images: torch.Tensor) -> torch.Tensor:
        """The images (B, 3, S, S) whose patches are predicted."""
        return images

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        prediction, tokens = self.predict(images, batch.mask)
        compared = self.target(images), prediction, batch.mask.hidden
        options = {"patch_size": self.config.backbone.patch_size, "normalize": self.config.normalize_pixels}
        return StepOutput(
            loss=patch_loss(*compared, **options),
            embedding=tokens.mean(1).detach(),
            patches=tokens.detach(),
            per_sample=partial(patch_errors, *compared, **options),
        )

    @property
    def pictures(self) -> str | None:
        return UP_TO_CONTRAST if self.config.normalize_pixels else THE_PIXELS

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, mask: Mask, *, contrast: bool = True) -> Restored:
        p, normalized = self.config.backbone.patch_size, self.config.normalize_pixels
        options = {"normalized": normalized, "contrast": contrast, "target": self.target(images)}
        return fill_hidden(images, self.predict(images, mask)[0], mask.hidden, p, **options)
