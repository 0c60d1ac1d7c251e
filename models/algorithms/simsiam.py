"""SimSiam: Exploring Simple Siamese Representation Learning (Chen and He 2020, arXiv 2011.10566)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..heads import projection_mlp
from ..smoke import tiny_backbone, tiny_view


class SimSiam(Algorithm):
    """Each view predicts the other one's projection, through which no gradient flows. No negatives, no teacher.

    Loss: -[cos(p1, z2) + cos(p2, z1)] / 2. The predictor's learning rate stays constant (`optim.groups` of the recipe).
    The metric `spread` is sqrt(D) times the standard deviation of the unit projections: near 1 in a healthy run, 0 when
    all images have collapsed into one point (figure 2 of the paper).
    """

    sample_loss = "-[cos(p1, z2) + cos(p2, z1)] / 2 of its two views"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["simsiam"] = "simsiam"
        view: ViewSpec = view("simsiam")
        backbone: BackboneConfig = ResNet.Config("resnet50")
        projection: Count = 2048  # width of all layers of the projector
        bottleneck: Count = 512  # of the predictor

        def __post_init__(self) -> None:
            if self.view.count != 2:
                raise ValueError(f"view: SimSiam compares two views, count is {self.view.count}")

        def smoke(self) -> SimSiam.Config:
            tiny = {"view": tiny_view(self.view), "backbone": tiny_backbone(self.backbone)}
            return replace(self, **tiny, projection=32, bottleneck=16)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        features, width = self.backbone.features, config.projection
        self.head = projection_mlp(features, width, width, layers=3, last_norm="plain")
        self.predictor = projection_mlp(width, config.bottleneck, width, last_bias=True, last_norm=None)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        features = [
            self.backbone(x) for x in batch.views[self.config.view.name]
        ]  # each with batch statistics of its own
        z1, z2 = (self.head(x).float() for x in features)
        p1, p2 = (self.predictor(z).float() for z in (z1, z2))
        z1, z2 = z1.detach(), z2.detach()
        first, second = F.cosine_similarity(p1, z2, eps=1e-12), F.cosine_similarity(p2, z1, eps=1e-12)
        spread = F.normalize(z1, dim=1).std(0).mean() * math.sqrt(z1.shape[1])
        return StepOutput(
            loss=-(first.mean() + second.mean()) / 2,
            metrics={"spread": spread},
            embedding=features[0].detach(),
            views=torch.stack(features).detach(),
            per_sample=lambda: -(first + second).detach() / 2,
        )
