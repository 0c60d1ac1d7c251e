"""ODC: Online Deep Clustering for Unsupervised Representation Learning (Zhan et al. 2020, arXiv 2006.10645)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ...kernels.ranks import world_size
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Chance, Count, Momentum, Natural
from ..algorithm import Algorithm, Embed, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..clustering import bisect, cluster_sizes, cluster_sums, kmeans, members, unit_rows
from ..distributed import gather_with_gradient, rank
from ..heads import classifier
from ..memory import SampleMemory
from ..smoke import tiny
from .deepcluster import features_view, weighted_cross_entropy


class ODC(Algorithm):
    """DeepCluster without pauses: labels and centroids follow the network from step to step, through a memory.

    After a step, in this order: memory S_i <- unit(m S_i + (1 - m) unit(y_i)) of the batch; its labels become those of
    the most similar centroids; every `centroids_every` steps all centroids become the means of their members; the
    smallest cluster, if it has fewer than `min_size` members, gives them to the most similar other clusters and takes
    the half of the largest one, `repairs` times. Classes are weighted by 1 / sqrt(size).
    """

    sample_loss = "cross-entropy of its cluster, without the cluster's weight"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["odc"] = "odc"
        view: ViewSpec = view("odc")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        hidden: Count = 512
        projection: Count = 256
        dropout: Chance = 0.5
        clusters: Count = 10_000
        momentum: Momentum = 0.5  # of the memory
        centroids_every: Count = 10  # optimizer steps
        min_size: Count = 20
        repairs: Natural = 4  # how many small clusters a step refills, the smallest first
        split_samples: Count = 8192  # at most so many members of a cluster take part in its split

        def __post_init__(self) -> None:
            if self.view.count != 1:
                raise ValueError(f"view: ODC needs one view, count is {self.view.count}")

        def smoke(self) -> ODC.Config:
            return tiny(self, hidden=32, projection=16, clusters=8, min_size=2)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.features, config.hidden),
            nn.BatchNorm1d(config.hidden, momentum=0.001, affine=False),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.projection),
            nn.ReLU(inplace=True),
        )
        self.classifier = classifier(config.projection, config.clusters)
        self.memory = SampleMemory(config.projection, labels=True)
        self.register_buffer("centroids", torch.zeros(config.clusters, config.projection))
        self.register_buffer("sizes", torch.ones(config.clusters))
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def prepare(self, samples: int) -> None:
        self.memory.allocate(samples)

    @torch.no_grad()
    def start_epoch(self, progress: Progress, embed: Embed) -> None:
        """Before the first epoch: k-means on the head's output."""
        if progress.step > 0:
            return
        rows = unit_rows(embed(nn.Sequential(self.backbone, self.head), features_view(self.config.view)).float())
        self.memory.rows.copy_(rows)
        labels, _ = kmeans(self.memory.rows[rank() :: world_size()], self.config.clusters, seed=0)
        self.memory.labels.zero_()
        self.memory.labels[rank() :: world_size()] = labels
        if world_size() > 1:
            dist.all_reduce(self.memory.labels)
        self._update_centroids()
        self.sizes.copy_(cluster_sizes(self.memory.labels, self.config.clusters))

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        ids = batch.ids.to(images.device, non_blocking=True)
        features = self.backbone(images)
        y = self.head(features)
        labels, logits = self.memory.labels[ids], self.classifier(y)
        loss = weighted_cross_entropy(logits, labels, self.sizes[labels].clamp(min=1).rsqrt())
        self._seen.append((ids, unit_rows(y.detach().float())))
        return StepOutput(
            loss=loss,
            embedding=features.detach(),
            per_sample=lambda: F.cross_entropy(logits.detach().float(), labels, reduction="none"),
        )

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        ids, y = (gather_with_gradient(torch.cat(parts)).flatten(0, 1) for parts in zip(*self._seen))
        self._seen.clear()
        rows, labels, m = self.memory.rows, self.memory.labels, self.config.momentum
        rows.index_copy_(0, ids, unit_rows(m * rows[ids] + (1 - m) * y))
        labels.index_copy_(0, ids, (rows[ids] @ self.centroids.T).argmax(1))
        if (progress.step + 1) % self.config.centroids_every == 0:
            self._update_centroids()
        for _ in range(self.config.repairs):
            self._refill_smallest()
        self.sizes.copy_(cluster_sizes(labels, self.config.clusters))
        if world_size() > 1:  # ranks compute the same, up to the last bit of sums; the first one's word counts
            for shared in (self.centroids, labels, self.sizes):
                dist.broadcast(shared, src=0)

    def _update_centroids(self) -> None:
        """Means of the members, not of unit length; a cluster without members keeps its centroid."""
        own = slice(rank(), None, world_size())
        sums, counts = cluster_sums(self.memory.rows[own], self.memory.labels[own], self.config.clusters)
        means = sums / counts.clamp(min=1)[:, None]
        self.centroids.copy_(torch.where(counts[:, None] > 0, means, self.centroids))

    def _refill_smallest(self) -> None:
        """Refills the smallest cluster if it is too small. All shapes are fixed, so nothing waits for the device."""
        rows, labels, limit = self.memory.rows, self.memory.labels, self.config.min_size
        sizes = cluster_sizes(labels, self.config.clusters)
        size, smallest = sizes.min(0)
        small = size < limit
        ids, real = members(labels, smallest, min(limit, len(labels)))
        similarity = (rows[ids] @ self.centroids.T).masked_fill(sizes < limit, float("-inf"))
        self._relabel(ids, real & small, similarity.argmax(1))
        largest = cluster_sizes(labels, self.config.clusters).argmax()
        ids, real = members(labels, largest, min(self.config.split_samples, len(labels)))
        half = bisect(rows[ids], real) & small
        self._relabel(ids, half, smallest.expand(len(ids)))
        for cluster, inside in ((smallest, half), (largest, real & ~half)):
            inside = inside.to(rows.dtype)
            mean = inside @ rows[ids] / inside.sum().clamp(min=1)
            place = cluster.view(1)
            self.centroids.index_copy_(0, place, torch.where(small, mean, self.centroids[place]).view(1, -1))

    def _relabel(self, ids: torch.Tensor, which: torch.Tensor, new: torch.Tensor) -> None:
        """labels[ids[which]] = new[which], with one spare place that takes what is not to be written."""
        labels = self.memory.labels
        spare = torch.cat([labels, labels[:1]])
        spare.scatter_(0, torch.where(which, ids, len(labels)), new)
        labels.copy_(spare[:-1])
