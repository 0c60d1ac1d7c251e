"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (Wang et al. 2020, arXiv 2011.09157)."""

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
from ...schema.bounds import Count, Momentum, Natural, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import ResNet
from ..distributed import shuffle_across_ranks, unshuffle_across_ranks
from ..memory import Queue
from ..sample_losses import row_losses
from ..smoke import tiny_backbone, tiny_view
from ..teacher import Teacher
from .moco import moco_head


class DenseCL(Algorithm):
    """MoCo v2 for the whole image, and once more for every position of the feature map.

    A position's positive is the key position whose backbone features are most similar to its own; its negatives are a
    queue of pooled dense keys. Loss: (1 - `dense_weight`) global + `dense_weight` dense.
    """

    local_batch_norm = True
    # the dense part would be a second product of all positions with the queue
    sample_loss = "the global part: cross-entropy of finding its key"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["densecl"] = "densecl"
        view: ViewSpec = view("densecl")
        backbone: ResNet.Config = ResNet.Config("resnet50", zero_init_residual=False)
        hidden: Count = 2048
        projection: Count = 128
        queue: Count = 65536  # of each of the two queues
        momentum: Momentum = 0.999
        temperature: Positive = 0.2
        dense_weight: float = 0.5
        dense_from: Natural = 0  # optimizer steps before which the dense loss has no weight

        def __post_init__(self) -> None:
            if self.view.count != 2:
                raise ValueError(f"view: DenseCL compares two views, count is {self.view.count}")
            if self.temperature <= 0 or not 0 <= self.dense_weight <= 1:
                raise ValueError(f"temperature, dense_weight: {self.temperature}, {self.dense_weight}")

        def smoke(self) -> DenseCL.Config:
            tiny = {"view": tiny_view(self.view), "backbone": tiny_backbone(self.backbone)}
            return replace(self, **tiny, hidden=32, projection=16, queue=64)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone)
        self.head = DenseHead(self.backbone.features, config.hidden, config.projection)
        self.teacher = Teacher(backbone=self.backbone, head=self.head)
        self.queue = Queue(config.queue, config.projection)
        self.dense_queue = Queue(config.queue, config.projection)
        self._keys: list[tuple[torch.Tensor, torch.Tensor]] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        query_images, key_images = batch.views[self.config.view.name]
        features = self.backbone.stages(query_images)[-1]
        queries, dense_queries = self.head(features)  # (B, D), (B, P, D)
        key_features, keys, dense_keys = self.keys(key_images)
        with torch.no_grad():
            match = best_matches(features.detach(), key_features)  # (B, P)
            positives = dense_keys.gather(1, match[:, :, None].expand_as(dense_keys))
            self._keys.append((F.normalize(keys, dim=1), F.normalize(dense_keys.mean(1), dim=1)))
        temperature = self.config.temperature
        queries, keys, queue = F.normalize(queries, dim=1), self._keys[-1][0], self.queue.rows
        loss = info_nce_queue(queries, keys, queue, temperature=temperature)
        dense = info_nce_queue(
            F.normalize(dense_queries, dim=2).flatten(0, 1),
            F.normalize(positives, dim=2).flatten(0, 1),
            self.dense_queue.rows,
            temperature=temperature,
        )
        weight = self.config.dense_weight if progress.step >= self.config.dense_from else 0.0
        return StepOutput(
            loss=(1 - weight) * loss + weight * dense,
            metrics={"global": loss.detach(), "dense": dense.detach()},
            embedding=features.mean((2, 3)).detach(),
            per_sample=partial(row_losses, queries, queue, keys=keys, temperature=temperature),
        )

    @torch.no_grad()
    def keys(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Feature map (B, C, h, w), key (B, D) and dense keys (B, P, D) of this rank's images, not normalised."""
        shuffled, inverse = shuffle_across_ranks(images)
        features = self.teacher.backbone.stages(shuffled)[-1]
        return tuple(unshuffle_across_ranks(x, inverse) for x in (features, *self.teacher.head(features)))

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, self.config.momentum)
        keys, dense_keys = (torch.cat(parts) for parts in zip(*self._keys))
        self.queue.enqueue(keys)
        self.dense_queue.enqueue(dense_keys)
        self._keys.clear()


class DenseHead(nn.Module):
    """Feature map (B, C, h, w) -> (B, D) of its mean, and (B, h w, D) of its positions, by heads of the same form."""

    def __init__(self, features: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.whole = moco_head(features, hidden, projection)
        self.dense = moco_head(features, hidden, projection)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = features.flatten(2).transpose(1, 2)
        return self.whole(positions.mean(1)).float(), self.dense(positions).float()


def best_matches(features: torch.Tensor, key_features: torch.Tensor) -> torch.Tensor:
    """(B, P) int64: for each position of `features` (B, C, h, w) the most similar one (cosine) of `key_features`."""
    query, key = (F.normalize(x.flatten(2).float(), dim=1) for x in (features, key_features))
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("bcp,bck->bpk", query, key).argmax(2)
