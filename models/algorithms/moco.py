"""MoCo: Momentum Contrast for Unsupervised Visual Representation Learning (He et al. 2019, arXiv 1911.05722), and
version 2, Improved Baselines with Momentum Contrastive Learning (Chen et al. 2020, arXiv 2003.04297)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.info_nce import info_nce_queue
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..distributed import shuffle_across_ranks, unshuffle_across_ranks
from ..memory import Queue
from ..sample_losses import row_losses
from ..smoke import tiny_backbone, tiny_view
from ..teacher import Teacher


class MoCo(Algorithm):
    """The first view's query finds the second view's key, by a slowly moving encoder, among the keys of a queue.

    The defaults are version 2; version 1 has a linear head, a temperature of 0.07 and other views. Batch normalisation
    is per process, and keys are computed from batches shuffled across processes, lest the statistics that query and
    key would share give the answer away.
    """

    local_batch_norm = True
    sample_loss = "cross-entropy of finding its key"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["moco"] = "moco"
        view: ViewSpec = view("moco_v2")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        hidden: Count | None = 2048  # width of the projection head's hidden layer; null: a linear head
        projection: Count = 128
        queue: Count = 65536
        momentum: Momentum = 0.999  # of the key encoder
        temperature: Positive = 0.2

        def __post_init__(self) -> None:
            if self.view.count != 2:
                raise ValueError(f"view: MoCo compares two views, count is {self.view.count}")
            if self.temperature <= 0:
                raise ValueError(f"temperature: must be positive, not {self.temperature}")

        def smoke(self) -> MoCo.Config:
            tiny = {"view": tiny_view(self.view), "backbone": tiny_backbone(self.backbone)}
            hidden = None if self.hidden is None else 32
            return replace(self, **tiny, hidden=hidden, projection=16, queue=64)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.head = moco_head(self.backbone.features, config.hidden, config.projection)
        self.teacher = Teacher(backbone=self.backbone, head=self.head)
        self.queue = Queue(config.queue, config.projection)
        self._keys: list[torch.Tensor] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        query_images, key_images = batch.views[self.config.view.name]
        features = self.backbone(query_images)
        queries = F.normalize(self.head(features).float(), dim=1)
        keys = self.keys(key_images)
        self._keys.append(keys)
        queue, temperature = self.queue.rows, self.config.temperature
        return StepOutput(
            loss=info_nce_queue(queries, keys, queue, temperature=temperature),
            embedding=features.detach(),
            per_sample=partial(row_losses, queries, queue, keys=keys, temperature=temperature),
        )

    @torch.no_grad()
    def keys(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, projection) of unit length."""
        shuffled, inverse = shuffle_across_ranks(images)
        keys = self.teacher.head(self.teacher.backbone(shuffled)).float()
        return unshuffle_across_ranks(F.normalize(keys, dim=1), inverse)

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, self.config.momentum)
        self.queue.enqueue(torch.cat(self._keys))
        self._keys.clear()


def moco_head(features: int, hidden: int | None, projection: int) -> nn.Module:
    """(B, features) -> (B, projection): a linear layer (version 1), or two with a ReLU between them (version 2)."""
    if hidden is None:
        return nn.Linear(features, projection)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, projection))
