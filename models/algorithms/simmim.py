"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., arXiv 2111.09886)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from ...kernels.patch_loss import patch_loss
from ...pipelines.spec import Batch, CellMask, Mask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Part
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.swin import Swin
from ..backbones.transformer import init_trunc_normal
from ..backbones.vit import ViT
from ..reconstruct import THE_PIXELS, Restored, fill_hidden
from ..sample_losses import patch_errors
from ..smoke import tiny_backbone, tiny_view


class SimMIM(Algorithm):
    """A learned token replaces hidden patches at the input; one linear layer predicts the raw pixels of each output.

    Loss: mean absolute error over the pixels of hidden cells, of the channel-normalised image.
    """

    sample_loss = "mean absolute error over the pixels of its hidden cells"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["simmim"] = "simmim"
        view: ViewSpec = view("simmim")
        backbone: Swin.Config | ViT.Config = Swin.Config(name="swin_base", window=6)
        mask_ratio: Part = 0.6
        cell: Count = 32  # pixels on the side of what is hidden as a whole

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % self.cell:
                got = f"{self.view.count} of {self.view.size} px"
                raise ValueError(f"view: needs one view whose size is a multiple of cell ({self.cell}), got {got}")
            if self.cell % self.output:
                raise ValueError(f"cell: {self.cell} px are no multiple of the {self.output} px that a token predicts")
            try:
                _ = self.mask
            except ValueError as fault:  # "ratio: ..."
                raise ValueError(f"mask_{fault}") from None

        @property
        def token(self) -> int:
            """Pixels on the side of a token that can be hidden."""
            return 4 if isinstance(self.backbone, Swin.Config) else self.backbone.patch_size

        @property
        def output(self) -> int:
            """Pixels on the side of what one output token predicts."""
            return 32 if isinstance(self.backbone, Swin.Config) else self.backbone.patch_size

        @property
        def mask(self) -> CellMask:
            side = self.view.size // self.token
            return CellMask(grid=(side, side), cell=self.cell // self.token, ratio=self.mask_ratio)

        def smoke(self) -> SimMIM.Config:
            return replace(self, view=tiny_view(self.view, 2 * self.cell), backbone=tiny_backbone(self.backbone))

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        build = Swin if isinstance(config.backbone, Swin.Config) else ViT
        self.backbone = build(config.backbone, config.view.size)
        if build is ViT:
            init_trunc_normal(self.backbone)
            for number, block in enumerate(self.backbone.blocks, start=1):  # as in BEiT
                with torch.no_grad():
                    block.proj.weight.div_((2 * number) ** 0.5)
                    block.fc2.weight.div_((2 * number) ** 0.5)
        width = self.backbone.patch_embed.conv.out_channels if build is Swin else self.backbone.features
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.head = nn.Linear(self.backbone.features, config.backbone.in_channels * config.output**2)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def predict(self, images: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S), hidden tokens (B, L) -> patches (B, P, 3 p²), p = `config.output`; tokens (B, P, D)."""
        if isinstance(self.backbone, Swin):
            maps = self.backbone.maps(images, hidden, self.mask_token)
            x = self.backbone.norm(maps[-1]).flatten(1, 2)
        else:
            x = self.backbone.tokens(images, hidden=hidden, mask_token=self.mask_token)[:, 1:]
        return self.head(x), x

    def _hidden_outputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, L) of input tokens -> (B, P) of output tokens, which cells cover whole."""
        step = self.config.output // self.config.token
        side = math.isqrt(hidden.shape[1])
        return hidden.unflatten(1, (side, side))[:, ::step, ::step].flatten(1)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, hidden = batch.views[self.config.view.name][0], batch.mask.hidden
        prediction, tokens = self.predict(images, hidden)
        compared = images, prediction, self._hidden_outputs(hidden)
        options = {"patch_size": self.config.output, "normalize": False, "absolute": True}
        return StepOutput(
            loss=patch_loss(*compared, **options),
            embedding=tokens.mean(1).detach(),
            patches=tokens.detach(),
            per_sample=partial(patch_errors, *compared, **options),
        )

    @property
    def pictures(self) -> str:
        return THE_PIXELS

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, mask: Mask, *, contrast: bool = True) -> Restored:
        prediction, _ = self.predict(images, mask.hidden)
        hidden = self._hidden_outputs(mask.hidden)
        return fill_hidden(images, prediction, hidden, self.config.output, normalized=False, absolute=True)
