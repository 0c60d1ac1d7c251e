"""Rotation Prediction: Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al. 2018, arXiv
1803.07728)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..heads import classifier
from ..smoke import tiny_backbone, tiny_view


class RotationPred(Algorithm):
    """By how many quarter turns, clockwise, is the image rotated? All four copies of every image are in the batch."""

    sample_loss = "cross-entropy of its four turns, their mean"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["rotation_pred"] = "rotation_pred"
        view: ViewSpec = view("rotation")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)

        def __post_init__(self) -> None:
            if self.view.parts != "rotations" or self.view.count != 1:
                raise ValueError("view: Rotation Prediction needs one view in four turns (parts: rotations)")

        def smoke(self) -> RotationPred.Config:
            return replace(self, view=tiny_view(self.view), backbone=tiny_backbone(self.backbone))

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.head = classifier(self.backbone.features, 4)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name]  # (4, B, 3, S, S)
        features = self.backbone(images.flatten(0, 1))
        logits = self.head(features)
        turns = torch.arange(4, device=logits.device).repeat_interleave(images.shape[1])
        accuracy = (logits.argmax(1) == turns).float().mean()
        upright = features[: images.shape[1]].detach()
        return StepOutput(
            F.cross_entropy(logits, turns),
            {"accuracy": accuracy},
            upright,
            per_sample=lambda: F.cross_entropy(logits.detach().float(), turns, reduction="none").view(4, -1).mean(0),
        )
