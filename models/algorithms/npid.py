"""NPID: Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al. 2018, arXiv 1805.01978)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..distributed import gather_with_gradient
from ..memory import SampleMemory
from ..smoke import tiny


class NPID(Algorithm):
    """Every image is a class of its own; its weight vector is what the network said of it when it last saw it.

    z . M_i / tau against `negatives` rows of the bank M drawn uniformly with replacement, as a softmax over 1 +
    `negatives` classes. (The paper approximates the full softmax by noise-contrastive estimation with a proximal term;
    the published figures are of this sampled softmax, which has neither.) Then M_i <- unit(m M_i + (1 - m) z).
    """

    sample_loss = "cross-entropy of finding its own row of the bank"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["npid"] = "npid"
        view: ViewSpec = view("npid")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        projection: Count = 128
        temperature: Positive = 0.07
        negatives: Count = 65536  # drawn for each sample
        exclude_self: bool = False  # a sample is never its own negative
        momentum: Momentum = 0.5  # of the bank

        def __post_init__(self) -> None:
            if self.temperature <= 0 or self.negatives < 1:
                raise ValueError(f"temperature, negatives: must be positive: {self.temperature}, {self.negatives}")

        def smoke(self) -> NPID.Config:
            return tiny(self, projection=16, negatives=64)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.head = nn.Linear(self.backbone.features, config.projection)
        self.bank = SampleMemory(config.projection)
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def prepare(self, samples: int) -> None:
        self.bank.allocate(samples)

    def draw_negatives(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, negatives) rows of the bank for samples `ids` (B,)."""
        samples, shape = len(self.bank.rows), (len(ids), self.config.negatives)
        if not self.config.exclude_self:
            return torch.randint(samples, shape, device=ids.device)
        others = torch.randint(samples - 1, shape, device=ids.device)
        return others + (others >= ids[:, None])  # uniform over all rows but one's own

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        ids = batch.ids.to(images.device, non_blocking=True)
        features = self.backbone(images)
        z = F.normalize(self.head(features).float(), dim=1)
        own, others = self.bank.rows[ids], self.bank.rows[self.draw_negatives(ids)]
        with torch.autocast(z.device.type, enabled=False):
            logits = torch.cat([(z * own).sum(1, keepdim=True), torch.einsum("bd,bkd->bk", z, others)], dim=1)
        scores, right = logits / self.config.temperature, torch.zeros_like(ids)
        self._seen.append((ids, z.detach()))
        return StepOutput(
            loss=F.cross_entropy(scores, right),
            embedding=features.detach(),
            per_sample=lambda: F.cross_entropy(scores.detach(), right, reduction="none"),
        )

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        ids, z = (gather_with_gradient(torch.cat(parts)).flatten(0, 1) for parts in zip(*self._seen))
        self._seen.clear()
        m = self.config.momentum
        self.bank.rows.index_copy_(0, ids, F.normalize(m * self.bank.rows[ids] + (1 - m) * z, dim=1))
