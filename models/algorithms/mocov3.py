"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen et al. 2021, arXiv 2104.02057)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.info_nce import info_nce
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ViT, build_backbone
from ..distributed import gather_with_gradient, rank
from ..heads import projection_mlp
from ..sample_losses import row_losses
from ..smoke import tiny
from ..teacher import Teacher, cosine_momentum


class MoCoV3(Algorithm):
    """Each view's prediction finds the other view's key among all keys of the global batch; no queue.

    With a transformer (class token, frozen random patch projection) the projector has three layers and the predictor
    ends in batch normalisation; with a ResNet two, and it does not. The loss is 2 tau [l(q1, k2) + l(q2, k1)].
    """

    sample_loss = "2 tau [l(q1, k2) + l(q2, k1)] of its own predictions"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["mocov3"] = "mocov3"
        first: ViewSpec = view("moco_v3_vit.first")
        second: ViewSpec = view("moco_v3_vit.second")
        backbone: BackboneConfig = ViT.Config("vit_small", heads=12, pool="cls", freeze_patch_embed=True)
        hidden: Count = 4096
        projection: Count = 256
        momentum: Momentum = 0.99  # of the key encoder at the start; 1 at the end
        temperature: Positive = 0.2

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"temperature: must be positive, not {self.temperature}")

        def smoke(self) -> MoCoV3.Config:
            return tiny(self, hidden=32, projection=16)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.first.size)
        transformer = isinstance(self.backbone, ViT)
        if transformer:
            init_as_published(self.backbone)
        layers, last_norm = (3, "plain") if transformer else (2, None)
        features, hidden, projection = self.backbone.features, config.hidden, config.projection
        self.head = projection_mlp(features, hidden, projection, layers, last_norm="plain")
        self.predictor = projection_mlp(projection, hidden, projection, last_norm=last_norm)
        self.teacher = Teacher(backbone=self.backbone, head=self.head)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = [batch.views[spec.name][0] for spec in self.inputs().views]
        features = [self.backbone(x) for x in views]
        q1, q2 = (F.normalize(self.predictor(self.head(x)).float(), dim=1) for x in features)
        with torch.no_grad():
            k1, k2 = (F.normalize(self.teacher.head(self.teacher.backbone(x)).float(), dim=1) for x in views)
        temperature = self.config.temperature
        pairs = candidates(q1, k2), candidates(q2, k1)
        loss = info_nce(*pairs[0], temperature=temperature) + info_nce(*pairs[1], temperature=temperature)
        return StepOutput(
            loss=2 * temperature * loss,
            embedding=features[0].detach(),
            views=torch.stack(features).detach(),
            per_sample=lambda: 2 * temperature * sum(row_losses(*pair, temperature=temperature) for pair in pairs),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, cosine_momentum(self.config.momentum, progress))


def candidates(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each query (B, D), the keys of all ranks, and which of them is its own, as `info_nce` takes it; unit length."""
    everything = gather_with_gradient(keys).flatten(0, 1)
    own = rank() * len(keys) + torch.arange(len(keys), device=keys.device)
    return queries, everything, own


def init_as_published(vit: ViT) -> None:
    """The authors' initial weights where they differ: Q, K and V each a Xavier matrix, a class token close to zero."""
    width = vit.features
    for block in vit.blocks:
        nn.init.uniform_(block.qkv.weight, -math.sqrt(6 / (2 * width)), math.sqrt(6 / (2 * width)))
    nn.init.normal_(vit.cls_token, std=1e-6)
    nn.init.zeros_(vit.patch_embed.bias)
