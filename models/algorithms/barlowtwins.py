"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...kernels.cross_correlation import cross_correlation
from ...kernels.ranks import all_reduce_sum, world_size
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, NotNegative
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..heads import projection_mlp
from ..smoke import tiny


class BarlowTwins(Algorithm):
    """The cross-correlation matrix of the two views' embeddings is to be the identity.

    Mean and variance are those of the global batch, as in the authors' code, and so is the gradient: it does not
    depend on the number of processes. (Theirs is smaller by that number, which LARS' layer-wise ratio takes back for
    weights but not for biases and norms.)
    """

    sample_loss = "half the mean squared difference of its two standardised embeddings (1 - the mean of the diagonal)"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["barlowtwins"] = "barlowtwins"
        first: ViewSpec = view("barlow.first")
        second: ViewSpec = view("barlow.second")
        backbone: BackboneConfig = ResNet.Config("resnet50")
        projection: Count = 8192  # width of all layers of the projector
        off_diagonal: NotNegative = 0.0051  # lambda, the weight of the elements beside the diagonal

        def smoke(self) -> BarlowTwins.Config:
            return tiny(self, projection=32)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.first.size)
        width = config.projection
        self.head = projection_mlp(self.backbone.features, width, width, layers=3, last_norm=None)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = [batch.views[spec.name][0] for spec in self.inputs().views]
        features = [self.backbone(x) for x in views]  # each view with batch statistics of its own
        z1, z2 = (self.head(x).float() for x in features)
        z1, z2 = standardize(z1), standardize(z2)
        return StepOutput(
            loss=cross_correlation(z1, z2, weight=self.config.off_diagonal),
            embedding=features[0].detach(),
            views=torch.stack(features).detach(),
            per_sample=lambda: (z1 - z2).detach().square().mean(1) / 2,
        )


def standardize(z: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """(B, D) with mean 0 and variance 1 over the global batch: batch normalisation without learned scale and shift."""
    count = len(z) * world_size()
    centred = z - all_reduce_sum(z.sum(0)) / count
    return centred * (all_reduce_sum(centred.square().sum(0)) / count + eps).rsqrt()
