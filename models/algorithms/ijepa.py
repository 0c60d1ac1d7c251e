"""I-JEPA: Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture (Assran et al. 2023,
arXiv 2301.08243)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pipelines.spec import Batch, PublishedBlocksMask, TargetBlocksMask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Part
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.transformer import Block, init_trunc_normal, positions_of, sincos_positions
from ..backbones.vit import ViT
from ..smoke import tiny
from ..teacher import Teacher, linear_momentum
from ..words import rows


class Predictor(nn.Module):
    """Context tokens and the places of blocks -> what a teacher says of the patches there.

    Each block is a sequence of its own, so that none sees another.
    """

    @dataclass(frozen=True)
    class Config:
        width: Count = 384
        depth: Count = 12
        heads: Count = 16

        def __post_init__(self) -> None:
            if self.width % self.heads or self.width % 4:
                raise ValueError(f"width: {self.width} must be a multiple of 4 and of heads ({self.heads})")

    def __init__(self, config: Config, features: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(features, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos_positions(config.width, *grid)[None])
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predict = nn.Linear(config.width, features)
        init_trunc_normal(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, keep: Tensor, targets: Tensor, patches: int) -> Tensor:
        """context (B, K, features) at keep (B, K), targets (B, M, T) of `patches` places -> (B, M, T, features)."""
        count, size = targets.shape[1:]
        table = positions_of(self.positions, self.grid, patches).expand(len(context), -1, -1)
        seen = self.embed(context) + rows(table, keep)
        asked = self.mask_token.to(seen.dtype) + rows(table, targets.flatten(1)).unflatten(1, (count, size))
        x = torch.cat([seen[:, None].expand(-1, count, -1, -1), asked], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, -size:])).unflatten(0, (-1, count))


class IJEPA(Algorithm):
    """From one part of an image, predict the features that a momentum teacher has for other parts, which sees it all.

    No augmentation but the crop, no pixels. With `masks` "unbiased", all shapes are fixed and every patch is seen as
    often as others near the border or the middle; "published" are the authors' (see `PublishedBlocksMask`).
    """

    no_pictures = "predicts features, no pictures"
    sample_loss = "smooth absolute error of the features of its blocks"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["ijepa"] = "ijepa"
        view: ViewSpec = view("ijepa")
        backbone: ViT.Config = ViT.Config("vit_huge", patch_size=14, class_token=False)
        predictor: Predictor.Config = Predictor.Config()
        masks: Literal["unbiased", "published"] = "unbiased"
        targets: Count = 4  # blocks
        kept: Part = 0.23  # of unbiased masks: the share of patches that the encoder sees
        momentum: Momentum = 0.996  # of the teacher at the start; 1 at the end, in a straight line

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % self.backbone.patch_size:
                raise ValueError(
                    f"view: needs one view whose size is a multiple of backbone.patch_size "
                    f"({self.backbone.patch_size}), got {self.view.count} of {self.view.size} px"
                )
            _ = self.mask

        def smoke(self) -> IJEPA.Config:
            return tiny(self, targets=2, kept=0.4, predictor=Predictor.Config(width=16, depth=1, heads=2))

        @property
        def mask(self) -> TargetBlocksMask | PublishedBlocksMask:
            grid = (self.view.size // self.backbone.patch_size,) * 2
            if self.masks == "published":
                return PublishedBlocksMask(grid=grid, targets=self.targets)
            return TargetBlocksMask(grid=grid, targets=self.targets, kept=max(1, round(grid[0] ** 2 * self.kept)))

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.backbone, config.view.size)
        init_trunc_normal(self.vit)
        self.predictor = Predictor(config.predictor, self.vit.features, self.vit.grid)
        self.teacher = Teacher(vit=self.vit)

    @property
    def encoder(self) -> ViT:
        return self.vit

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, mask = batch.views[self.config.view.name][0], batch.mask
        context = self.vit.tokens(images, mask.keep)[:, 1:]
        predicted = self.predictor(context, mask.keep, mask.targets, mask.hidden.shape[1]).float()
        with torch.no_grad():
            said = self.teacher.vit.tokens(images)[:, 1:].float()
            said = F.layer_norm(said, said.shape[-1:])
            said = rows(said, mask.targets.flatten(1)).view_as(predicted)
        return StepOutput(
            loss=F.smooth_l1_loss(predicted, said),
            embedding=context.mean(1).detach(),
            patches=context.detach(),
            per_sample=lambda: F.smooth_l1_loss(predicted.detach(), said, reduction="none").mean((1, 2, 3)),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, linear_momentum(self.config.momentum, progress))
