"""BYOL: Bootstrap Your Own Latent (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..heads import projection_mlp
from ..smoke import tiny
from ..teacher import Teacher, cosine_momentum


class BYOL(Algorithm):
    """Each view predicts the teacher's projection of the other one. No negatives.

    Loss: -2 [cos(p1, t2) + cos(p2, t1)], the paper's sum of squared distances of unit vectors less the constant 4.
    """

    sample_loss = "-2 [cos(p1, t2) + cos(p2, t1)] of its two views"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["byol"] = "byol"
        first: ViewSpec = view("byol.first")
        second: ViewSpec = view("byol.second")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        hidden: Count = 4096  # of projector and predictor
        projection: Count = 256
        momentum: Momentum = 0.99  # of the teacher at the start; 1 at the end

        def smoke(self) -> BYOL.Config:
            return tiny(self, hidden=32, projection=16)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.first.size)
        hidden, projection = config.hidden, config.projection
        self.head = projection_mlp(self.backbone.features, hidden, projection, bias=True, last_norm=None)
        self.predictor = projection_mlp(projection, hidden, projection, bias=True, last_norm=None)
        self.teacher = Teacher(backbone=self.backbone, head=self.head)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = [batch.views[spec.name][0] for spec in self.inputs().views]
        features = [self.backbone(x) for x in views]
        p1, p2 = (self.predictor(self.head(x)).float() for x in features)
        with torch.no_grad():
            t1, t2 = (self.teacher.head(self.teacher.backbone(x)).float() for x in views)
        first, second = F.cosine_similarity(p1, t2, eps=1e-12), F.cosine_similarity(p2, t1, eps=1e-12)
        return StepOutput(
            loss=-2 * (first.mean() + second.mean()),
            embedding=features[0].detach(),
            views=torch.stack(features).detach(),
            per_sample=lambda: -2 * (first + second).detach(),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, cosine_momentum(self.config.momentum, progress))
