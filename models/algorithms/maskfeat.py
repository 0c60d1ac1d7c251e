"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., arXiv 2112.09133)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from ...kernels.hog import hog
from ...pipelines.spec import Batch, BlockMask, Mask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.vit import ViT
from ..reconstruct import Restored
from ..sample_losses import hidden_mean
from ..smoke import tiny_backbone, tiny_view
from ..targets.hog_picture import hog_picture
from .beit import init_beit

PATCH = 16  # pixels: HOG's cells are of 8, and 2 x 2 of them belong to a patch
VALUES = 108  # of a patch: 3 channels x 9 bins x 4 cells


class MaskFeat(Algorithm):
    """A mask token replaces blocks of patches; of each, the histograms of oriented gradients are predicted.

    Loss: mean squared error over hidden patches of the 108 values of `headrace.kernels.hog`.
    """

    sample_loss = "mean squared error over its hidden patches' histograms"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["maskfeat"] = "maskfeat"
        rgb_only: ClassVar[str] = "predicts gradients of the colours of RGB images"
        view: ViewSpec = view("maskfeat")
        backbone: ViT.Config = ViT.Config("vit_base", positions="learned")
        hidden_patches: Count = 78
        smallest_block: Count = 15  # patches

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % PATCH or self.backbone.patch_size != PATCH:
                raise ValueError(f"view: needs one view in patches of {PATCH} px, a multiple of which is its size")

        @property
        def mask(self) -> BlockMask:
            side = self.view.size // PATCH
            return BlockMask(grid=(side, side), count=self.hidden_patches, min_block=self.smallest_block)

        def resized(self, **sides: int) -> MaskFeat.Config:
            share = (sides.get("view", self.view.size) / self.view.size) ** 2
            counts = {"hidden_patches": self.hidden_patches, "smallest_block": self.smallest_block}
            counts = {name: max(1, round(count * share)) for name, count in counts.items()}
            return replace(super().resized(**sides), **counts)

        def smoke(self) -> MaskFeat.Config:
            return replace(
                self,
                view=tiny_view(self.view, 4 * PATCH),
                backbone=replace(tiny_backbone(self.backbone), patch_size=PATCH),
                hidden_patches=6,
                smallest_block=2,
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.backbone, config.view.size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.vit.features))
        self.head = nn.Linear(self.vit.features, VALUES)
        init_beit(self)

    @property
    def encoder(self) -> ViT:
        return self.vit

    def predict(self, images: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S), hidden (B, L) -> histograms (B, L, 108) and tokens (B, L, D)."""
        tokens = self.vit.tokens(images, hidden=hidden, mask_token=self.mask_token)[:, 1:]
        return self.head(tokens), tokens

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, hidden = batch.views[self.config.view.name][0], batch.mask.hidden
        prediction, tokens = self.predict(images, hidden)
        error = (prediction.float() - hog(images)).square().mean(-1)
        return StepOutput(
            loss=(error * hidden).sum() / hidden.sum(),
            embedding=tokens.mean(1).detach(),
            patches=tokens.detach(),
            per_sample=partial(hidden_mean, error, hidden),
        )

    @property
    def pictures(self) -> str:
        return "Strokes in hidden patches lie along the edges whose gradients are predicted."

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, mask: Mask, *, contrast: bool = True) -> Restored:
        """Hidden patches are strokes along the predicted gradients' edges."""
        prediction, _ = self.predict(images, mask.hidden)
        strokes = hog_picture(prediction.float(), self.config.mask.grid)
        view = self.config.view
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (view.mean, view.std))
        hidden = mask.hidden.unflatten(1, self.config.mask.grid)[:, None]
        hidden = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        filled = torch.where(hidden, (strokes - mean) / std, images.float())
        return Restored(filled, mask.hidden, (prediction.float() - hog(images)).square().mean(-1))
