"""MixMIM, later MixMAE: Mixed and Masked Image Modeling for Hierarchical Vision Transformers (arXiv 2205.13137)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from ...kernels.patch_loss import patch_loss
from ...pipelines.spec import Batch, Mask, SharedMask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import NotNegative, Part
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.mixmim import MixMIMTransformer
from ..decoders import MAEDecoder, MixMIMDecoder
from ..reconstruct import THE_PIXELS, UP_TO_CONTRAST, Restored, fill_hidden
from ..sample_losses import patch_errors
from ..smoke import tiny_backbone, tiny_view

STRIDE = 32  # pixels of a cell of the mask, which is a token of the last stage


class MixMIM(Algorithm):
    """Hidden patches are not blank but another image's: each pass over a mixed image serves two, and both are restored.

    Image b is mixed with image B - 1 - b of the batch, so B must be even. Loss: mean squared error over all patches of
    all images, each predicted from the pass in which it was hidden, normalised by its own mean and deviation
    (`normalize_pixels`).
    """

    sample_loss = "mean squared error over all its patches"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["mixmim"] = "mixmim"
        view: ViewSpec = view("mixmim")
        backbone: MixMIMTransformer.Config = MixMIMTransformer.Config()
        decoder: MAEDecoder.Config = MAEDecoder.Config()
        mask_ratio: Part = 0.5
        mask_spread: NotNegative = 0.0  # the ratio of a step is mask_ratio + U(0, mask_spread)
        mask_per_sample: bool = False  # a mask for each pair of images instead of one for the batch
        normalize_pixels: bool = True

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % STRIDE:
                raise ValueError(
                    f"view: needs one view whose size is a multiple of {STRIDE}, "
                    f"got {self.view.count} of {self.view.size} px"
                )
            try:
                mask = self.mask
            except ValueError as fault:  # "ratio, spread: ..."
                raise ValueError(f"mask_ratio, mask_{str(fault).removeprefix('ratio, ')}") from None
            if int(mask.patches * mask.ratio) < 1:
                raise ValueError(f"mask_ratio: {self.mask_ratio} of {mask.patches} patches hides none")

        @property
        def mask(self) -> SharedMask:
            side = self.view.size // STRIDE
            return SharedMask(
                grid=(side, side), ratio=self.mask_ratio, spread=self.mask_spread, per_sample=self.mask_per_sample
            )

        def smoke(self) -> MixMIM.Config:
            return replace(
                self,
                view=tiny_view(self.view, 2 * STRIDE),
                backbone=tiny_backbone(self.backbone),
                decoder=MAEDecoder.Config(width=16, depth=1, heads=2),
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = MixMIMTransformer(config.backbone, config.view.size)
        outputs = config.backbone.in_channels * STRIDE**2
        self.decoder = MixMIMDecoder(config.decoder, self.backbone.features, config.mask.grid, outputs)

    @property
    def encoder(self) -> MixMIMTransformer:
        return self.backbone

    def predict(self, images: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S), hidden (1 or B, L) -> patches (B, L, 3 * 32²), tokens of the mixed images (B, L, D)."""
        if len(images) % 2:
            raise ValueError(f"MixMIM pairs the images of a batch, which must be even, not {len(images)}")
        side = images.shape[-1] // STRIDE
        tokens = self.backbone.tokens(images, hidden.unflatten(1, (side, side)))
        return self.decoder(tokens, hidden), tokens

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        hidden = _of_pairs(batch.mask.hidden)
        prediction, tokens = self.predict(images, hidden)
        everything = torch.ones(prediction.shape[:2], dtype=torch.bool, device=images.device)
        options = {"patch_size": STRIDE, "normalize": self.config.normalize_pixels}
        own = (~hidden)[:, :, None].to(tokens.dtype)
        return StepOutput(
            loss=patch_loss(images, prediction, everything, **options),
            patches=tokens.detach(),
            embedding=((tokens * own).sum(1) / own.sum(1)).detach(),
            per_sample=partial(patch_errors, images, prediction, everything, **options),
        )

    @property
    def pictures(self) -> str:
        return UP_TO_CONTRAST if self.config.normalize_pixels else THE_PIXELS

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, mask: Mask, *, contrast: bool = True) -> Restored:
        """Patches that were hidden behind the partner's are as predicted."""
        hidden = _of_pairs(mask.hidden)
        prediction, _ = self.predict(images, hidden)
        hidden = hidden.expand(len(images), -1)
        normalized = self.config.normalize_pixels
        return fill_hidden(images, prediction, hidden, STRIDE, normalized=normalized, contrast=contrast)


def _of_pairs(hidden: torch.Tensor) -> torch.Tensor:
    """(1, L) as it is; (B, L) with image b's mask for B - 1 - b, too: a pair shares one."""
    if len(hidden) == 1:
        return hidden
    half = hidden[: len(hidden) // 2]
    return torch.cat([half, half.flip(0)])
