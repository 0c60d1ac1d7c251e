"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al. 2020, arXiv
2006.09882)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...kernels.prototype_ce import prototype_ce
from ...kernels.ranks import world_size
from ...kernels.sinkhorn import sinkhorn
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Natural, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..distributed import rank
from ..heads import projection_mlp
from ..memory import Queue
from ..sample_losses import prototype_losses
from ..smoke import tiny_backbone, tiny_view


class SwAV(Algorithm):
    """Each crop predicts to which prototypes the two large crops were assigned; assignments use all prototypes alike.

    Assignments come from Sinkhorn's algorithm over the large crops of the global batch and, from epoch `queue_from`,
    over a queue of earlier ones. The queue is filled from the first step, so that it is full by then.
    """

    sample_loss = "cross-entropy of its crops with its assignments, the mean over pairs"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["swav"] = "swav"
        large: ViewSpec = view("swav_2x224_6x96.large")
        small: ViewSpec = view("swav_2x224_6x96.small")
        backbone: BackboneConfig = ResNet.Config("resnet50")
        hidden: Count = 2048
        projection: Count = 128
        prototypes: Count = 3000
        temperature: Positive = 0.1
        epsilon: Positive = 0.05  # of Sinkhorn's entropy
        iterations: Count = 3
        queue: Natural = 3840  # embeddings of each large crop, of all processes together; 0: none
        queue_from: Natural = 15  # the epoch, from 0
        freeze_prototypes: Natural = 5005  # optimizer steps

        def __post_init__(self) -> None:
            if self.large.count != 2:
                raise ValueError(f"large: SwAV assigns two large crops, count is {self.large.count}")
            if self.temperature <= 0 or self.epsilon <= 0:
                raise ValueError(f"temperature, epsilon: must be positive: {self.temperature}, {self.epsilon}")

        def smoke(self) -> SwAV.Config:
            tiny = {"large": tiny_view(self.large), "small": tiny_view(self.small, 16)}
            narrow = {"hidden": 32, "projection": 16, "prototypes": 8, "queue": min(self.queue, 16)}
            return replace(self, **tiny, backbone=tiny_backbone(self.backbone), **narrow, freeze_prototypes=4)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.large.size)
        features, projection = self.backbone.features, config.projection
        self.head = projection_mlp(features, config.hidden, projection, bias=True, last_bias=True, last_norm=None)
        self.prototypes = nn.Linear(projection, config.prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(config.queue, projection) for _ in range(2 if config.queue else 0))
        if config.queue % world_size():
            raise UserError(f"algorithm.queue: {config.queue} does not divide among {world_size()} processes")
        self._seen: list[torch.Tensor] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        large, small = (batch.views[spec.name] for spec in self.inputs().views)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        features = torch.cat([self.backbone(x.flatten(0, 1)) for x in (large, small)])
        # one pass of the head: its batch statistics span all crops
        z = F.normalize(self.head(features).float(), dim=1).unflatten(0, (len(large) + len(small), -1))
        with torch.autocast(z.device.type, enabled=False):
            scores = self.prototypes(z)  # (crops, B, K)
            codes = torch.stack([self.codes(i, z[i].detach(), scores[i].detach(), progress) for i in range(2)])
        self._seen.append(z[:2].detach())
        temperature = self.config.temperature
        return StepOutput(
            loss=prototype_ce(scores, codes, student_temperature=temperature),
            embedding=features[: large.shape[1]].detach(),
            views=features[: 2 * large.shape[1]].unflatten(0, (2, -1)).detach(),
            per_sample=partial(prototype_losses, scores, codes, student_temperature=temperature),
        )

    @torch.no_grad()
    def codes(self, crop: int, z: torch.Tensor, scores: torch.Tensor, progress: Progress) -> torch.Tensor:
        """Assignments (B, K) of a large crop; its rank's part of the queue takes part where there is one."""
        full = progress.step * len(z) * world_size() >= self.config.queue
        if self.queues and full and progress.epoch >= self.config.queue_from:
            earlier = self.queues[crop].rows.view(world_size(), -1, z.shape[1])[rank()]
            scores = torch.cat([self.prototypes(earlier), scores])
        return sinkhorn(scores, epsilon=self.config.epsilon, iterations=self.config.iterations)[-len(z) :]

    def after_backward(self, progress: Progress) -> None:
        if progress.step < self.config.freeze_prototypes:
            self.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        for queue, z in zip(self.queues, torch.cat(self._seen, dim=1)):
            queue.enqueue(z)
        self._seen.clear()
