"""Linear classifiers on all five stages of a frozen ResNet at once: how much each depth knows (arXiv 1905.01235)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import ResNet
from ..distributed import shared_count
from ..smoke import tiny_backbone, tiny_view
from ..stage_pools import LAYERS, pool, pooled_shape
from ..weights import load_weights


class MultiHead(Algorithm):
    """The sum of five cross entropies, of a head on each stage: pool, batch normalisation without affine, linear.

    Samples without a label, -1, neither teach nor count.
    """

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["multihead"] = "multihead"
        view: ViewSpec = view("linear_stages_train")
        backbone: ResNet.Config = ResNet.Config("resnet50")
        classes: Count = 1000
        weights: str | None = None  # encoder.safetensors of a run; null: random features

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.parts is not None:
                raise ValueError(f"view: a classifier sees one view, count is {self.view.count}")
            if self.classes < 2:
                raise ValueError(f"classes: needs at least 2, not {self.classes}")

        def smoke(self) -> MultiHead.Config:
            return replace(self, view=tiny_view(self.view), backbone=tiny_backbone(self.backbone), weights=None)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.scorer = Probes(config.backbone, config.classes)

    def prepare(self, samples: int) -> None:
        """The start of a run: `weights` into the encoder."""
        if self.config.weights is not None:
            load_weights(self.encoder, self.config.weights)

    @property
    def encoder(self) -> nn.Module:
        return self.scorer.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        if batch.labels is None:
            raise UserError("data.train: has no labels to learn from; give a folder per class")
        scores = self.scorer(batch.views[self.config.view.name][0]).float()
        labels = batch.labels[:, None].expand(-1, len(LAYERS))
        losses = F.cross_entropy(scores.transpose(1, 2), labels, ignore_index=-1, reduction="none")
        known = (batch.labels >= 0).sum()
        right = (scores.detach().argmax(2) == labels).sum(0) / known.clamp(min=1)
        metrics = {f"top1_{layer}": top1 for layer, top1 in zip(LAYERS, right)}
        return StepOutput(losses.sum() / shared_count(known), metrics)


class Probes(nn.Module):
    """Images (B, 3, S, S) -> scores (B, 5, classes), from the stem's map to the last stage's; the ResNet is frozen."""

    def __init__(self, backbone: ResNet.Config, classes: int) -> None:
        super().__init__()
        self.backbone = ResNet(backbone).requires_grad_(False)
        self.heads = nn.ModuleDict()
        for layer in LAYERS:
            channels, side = pooled_shape(self.backbone, layer)
            linear = nn.Linear(channels * side**2, classes)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
            self.heads[layer] = nn.Sequential(nn.BatchNorm2d(channels, affine=False), nn.Flatten(), linear)

    def train(self, mode: bool = True) -> Probes:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            maps = self.backbone.stages(images)
        pooled = [pool(layer, own, images.shape[-1]) for layer, own in zip(LAYERS, maps)]
        return torch.stack([head(own) for head, own in zip(self.heads.values(), pooled)], dim=1)
