"""LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics (Balestriero and LeCun 2025, arXiv
2511.08544); its regulariser may be VISReg's (arXiv 2606.02572)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.sigreg import sigreg
from ...pipelines.rng import uniform
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ViT, build_backbone
from ..distributed import gather_with_gradient
from ..heads import projection_mlp
from ..smoke import tiny_backbone, tiny_view


class LeJEPA(Algorithm):
    """Views of an image meet at the mean of its global ones, and a batch of each view is kept standard normal.

    No teacher, no stopped gradient, no schedule but the rate's. What a view's embeddings are along random directions is
    compared with a normal distribution: by characteristic functions (`sigreg`), or by sorting (`visreg`). Either is a
    statistic of the global batch, and its directions are a function of (seed, step): the result does not depend on the
    number of processes.
    """

    sample_loss = "mean squared distance of its views from the mean of its global ones"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["lejepa"] = "lejepa"
        large: ViewSpec = view("lejepa_2x224_6x98.large")
        small: ViewSpec | None = view("lejepa_2x224_6x98.small")
        backbone: BackboneConfig = ViT.Config(
            "vit_large", patch_size=14, pool="cls", positions="learned", drop_path=0.1
        )
        embedding: Count | None = 512  # width of a linear layer before the projector; null: none
        hidden: Count = 2048  # of the projector
        projection: Count = 512
        regularizer: Literal["sigreg", "visreg"] = "sigreg"
        weight: float = 0.05  # of the regulariser; the views' distance has the rest of 1
        directions: Count = 1024
        points: Count = 17  # of sigreg's integral
        t_max: Positive = 3.0

        def __post_init__(self) -> None:
            if self.large.count + (self.small.count if self.small else 0) < 2:
                raise ValueError("large, small: LeJEPA compares views, there must be two or more")
            if not 0 <= self.weight <= 1:
                raise ValueError(f"weight: a share lies in [0, 1], not {self.weight}")
            if self.directions < 1 or self.points < 2 or self.t_max <= 0:
                raise ValueError("directions, points, t_max: needs a direction, two points, and a positive end")

        def smoke(self) -> LeJEPA.Config:
            tiny = {"large": tiny_view(self.large), "small": self.small and tiny_view(self.small, 16)}
            narrow = {"embedding": self.embedding and 24, "hidden": 32, "projection": 16, "directions": 32}
            return replace(self, **tiny, backbone=tiny_backbone(self.backbone), **narrow)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.large.size)
        width = config.embedding or self.backbone.features
        embed = [nn.Linear(self.backbone.features, width)] if config.embedding else []
        options = {"layers": 3, "bias": True, "last_bias": True, "last_norm": None}
        self.head = nn.Sequential(*embed, projection_mlp(width, config.hidden, config.projection, **options))

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = [batch.views[spec.name] for spec in self.inputs().views]
        features = torch.cat([self.backbone(x.flatten(0, 1)) for x in views])
        # one pass of the head: its batch statistics span all views
        z = self.head(features).float().unflatten(0, (sum(map(len, views)), -1))  # (V, B, D)
        distance = (z - z[: len(views[0])].mean(0)).square()
        with torch.autocast(z.device.type, enabled=False):
            spread = self.regularizer(z, progress)
        return StepOutput(
            loss=(1 - self.config.weight) * distance.mean() + self.config.weight * spread,
            metrics={"distance": distance.detach().mean(), self.config.regularizer: spread.detach()},
            embedding=features[: views[0].shape[1]].detach(),
            views=features.unflatten(0, (len(z), -1)).detach(),
            per_sample=lambda: distance.detach().mean((0, 2)),
        )

    def regularizer(self, z: Tensor, progress: Progress) -> Tensor:
        """How far embeddings (V, B, D) of all ranks are from standard normal ones, view by view: a scalar."""
        directions = unit_directions(z.shape[-1], self.config.directions, progress, z.device).to(z.dtype)
        if self.config.regularizer == "sigreg":
            return sigreg(z @ directions, points=self.config.points, t_max=self.config.t_max)
        return visreg(gather_with_gradient(z).transpose(0, 1).flatten(1, 2), directions)


def unit_directions(width: int, count: int, progress: Progress, device: torch.device) -> Tensor:
    """(width, count) float64 columns of unit length, uniform over all directions: a function of (seed, step).

    Normal numbers by Box and Muller's formula, from the generator of all draws, so that every process has the same.
    """
    rows = torch.arange(width, device=device)
    radius, turn = uniform(progress.seed, "lejepa/directions", progress.step, rows, 2 * count).chunk(2, dim=1)
    return nn.functional.normalize((-2 * (-radius).log1p()).sqrt() * (2 * math.pi * turn).cos(), dim=0)


def visreg(z: Tensor, directions: Tensor) -> Tensor:
    """VISReg of embeddings (V, N, D): their mean, their deviations, and how their projections are distributed.

    The last compares sorted projections with the quantiles i / (N + 1) of the normal distribution, after each dimension
    has been divided by its deviation, through which no gradient flows.
    """
    samples = z.shape[1]
    centred = z - z.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
    ranks = torch.arange(1, samples + 1, device=z.device, dtype=z.dtype) / (samples + 1)
    projections = ((centred / deviation.detach()) @ directions).sort(1).values
    shape = (projections - torch.special.ndtri(ranks)[:, None]).square().mean()
    return z.mean(1).square().mean() + (deviation - 1).square().mean() + shape
