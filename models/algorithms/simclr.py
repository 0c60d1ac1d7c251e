"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., arXiv 2002.05709)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from ...kernels.info_nce import info_nce
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..distributed import gather_with_gradient, rank
from ..heads import projection_mlp
from ..sample_losses import row_losses
from ..smoke import tiny_backbone, tiny_view


class SimCLR(Algorithm):
    """Two views of an image attract each other, all other views of the global batch repel (NT-Xent).

    Gradients flow through the gathered embeddings of all ranks, so the result does not depend on their number.
    """

    sample_loss = "cross-entropy of finding its other view, the mean over both"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["simclr"] = "simclr"
        view: ViewSpec = view("simclr")
        backbone: BackboneConfig = ResNet.Config("resnet50")
        hidden: Count = 2048  # width of the projection head
        projection: Count = 128
        temperature: Positive = 0.1

        def __post_init__(self) -> None:
            if self.view.count != 2:
                raise ValueError(f"view: SimCLR compares two views, count is {self.view.count}")
            if self.temperature <= 0:
                raise ValueError(f"temperature: must be positive, not {self.temperature}")

        def smoke(self) -> SimCLR.Config:
            tiny = {"view": tiny_view(self.view), "backbone": tiny_backbone(self.backbone)}
            return replace(self, **tiny, hidden=32, projection=16)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.head = projection_mlp(self.backbone.features, config.hidden, config.projection)

    @property
    def encoder(self) -> torch.nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views = batch.views[self.config.view.name]
        features = self.backbone(views.flatten(0, 1))  # one forward: both views share their batch statistics
        z = F.normalize(self.head(features).float(), dim=1)
        compared, temperature = candidates(z), self.config.temperature
        return StepOutput(
            loss=info_nce(*compared, temperature=temperature),
            embedding=features[: views.shape[1]].detach(),
            views=features.unflatten(0, (2, -1)).detach(),
            per_sample=lambda: row_losses(*compared, temperature=temperature).unflatten(0, (2, -1)).mean(0),
        )


def candidates(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What NT-Xent (equation 1 of the paper) compares: this rank's rows with the rows of all ranks, as `info_nce` takes
    it.

    z: (2 B, D) rows of unit length, view-major: row b and row B + b are views of the same image.
    """
    rows, batch = z.shape[0], z.shape[0] // 2
    own = torch.arange(rows, device=z.device)
    first = rank() * rows  # this rank's first row among those of all ranks
    everything = gather_with_gradient(z).flatten(0, 1)
    return z, everything, first + (own + batch) % rows, first + own
