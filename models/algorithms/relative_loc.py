"""Relative Location: Unsupervised Visual Representation Learning by Context Prediction (Doersch et al. 2015, arXiv
1505.05192)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Chance, Count
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..heads import classifier
from ..smoke import tiny_backbone, tiny_view


class RelativeLoc(Algorithm):
    """Which of the eight neighbours of the centre patch is this one?

    All eight pairs of every image are in the batch, so the classes are balanced. Classes go column by column: top left,
    middle left, bottom left, top, bottom, top right, middle right, bottom right. The centre's features are computed
    once and shared by its eight pairs.
    """

    local_batch_norm = True
    sample_loss = "cross-entropy of the places of its eight neighbours, their mean"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["relative_loc"] = "relative_loc"
        view: ViewSpec = view("relative_loc")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        hidden: Count = 4096
        dropout: Chance = 0.5

        def __post_init__(self) -> None:
            if self.view.parts != "patches" or self.view.count != 1:
                raise ValueError("view: Relative Location needs one view in patches (parts: patches)")

        def smoke(self) -> RelativeLoc.Config:
            return replace(self, view=tiny_view(self.view, 111), backbone=tiny_backbone(self.backbone), hidden=32)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.side)
        self.head = nn.Sequential(
            classifier(2 * self.backbone.features, config.hidden),
            nn.BatchNorm1d(config.hidden, momentum=0.003),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            classifier(config.hidden, 8, std=0.005),
        )

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        patches = batch.views[self.config.view.name]  # (9, B, 3, 64, 64), the centre first
        count = patches.shape[1]
        neighbours = self.backbone(patches[1:].flatten(0, 1))
        centre = self.backbone(patches[0])
        logits = self.head(torch.cat([neighbours, centre.repeat(8, 1)], dim=1))
        place = torch.arange(8, device=logits.device).repeat_interleave(count)
        accuracy = (logits.argmax(1) == place).float().mean()
        return StepOutput(
            F.cross_entropy(logits, place),
            {"accuracy": accuracy},
            centre.detach(),
            per_sample=lambda: F.cross_entropy(logits.detach().float(), place, reduction="none").view(8, -1).mean(0),
        )
