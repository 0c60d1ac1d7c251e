"""DeepCluster: Deep Clustering for Unsupervised Learning of Visual Features (Caron et al. 2018, arXiv 1807.05520)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ...kernels.ranks import all_reduce_sum, world_size
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count
from ..algorithm import Algorithm, Embed, Progress, StepOutput
from ..backbones import BackboneConfig, ResNet, build_backbone
from ..clustering import cluster_sizes, kmeans, pca_whiten, unit_rows
from ..distributed import average_buffers, rank
from ..heads import classifier
from ..memory import SampleMemory
from ..smoke import tiny


class DeepCluster(Algorithm):
    """Cluster the features of the whole data set, then learn to predict the clusters for an epoch; and again.

    Clustering: features of centre crops in evaluation mode, PCA-whitened, of unit length, k-means. The classifier then
    starts anew, since cluster numbers mean nothing from one epoch to the next; the recipe gives it no momentum.
    Every cluster counts alike, whatever its size: the paper's uniform sampling over clusters, in the form of weights
    1 / size on the samples, which it calls equivalent (section 3.3).
    """

    local_batch_norm = True
    sample_loss = "cross-entropy of its cluster, without the cluster's weight"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["deepcluster"] = "deepcluster"
        view: ViewSpec = view("deepcluster")
        backbone: BackboneConfig = ResNet.Config("resnet50", zero_init_residual=False)
        clusters: Count = 10_000
        components: Count = 256  # principal components that are clustered

        def __post_init__(self) -> None:
            if self.view.count != 1:
                raise ValueError(f"view: DeepCluster needs one view, count is {self.view.count}")

        def smoke(self) -> DeepCluster.Config:
            return tiny(self, clusters=8, components=8)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.classifier = classifier(self.backbone.features, config.clusters)
        self.memory = SampleMemory(labels=True)
        self.register_buffer("sizes", torch.ones(config.clusters))  # of the clusters, in samples

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def prepare(self, samples: int) -> None:
        self.memory.allocate(samples)

    @torch.no_grad()
    def start_epoch(self, progress: Progress, embed: Embed) -> None:
        average_buffers(self.backbone)  # every rank must see the same features
        features = embed(self.backbone, features_view(self.config.view))[rank() :: world_size()]
        features = features.to(self.sizes.device, torch.float32)
        labels, _ = kmeans(
            unit_rows(pca_whiten(features, self.config.components)), self.config.clusters, progress.epoch
        )
        self.memory.labels.zero_()
        self.memory.labels[rank() :: world_size()] = labels
        if world_size() > 1:
            dist.all_reduce(self.memory.labels)
        self.sizes.copy_(cluster_sizes(self.memory.labels, self.config.clusters))
        generator = torch.Generator().manual_seed(progress.epoch)
        self.classifier.weight.copy_(torch.randn(self.classifier.weight.shape, generator=generator) * 0.01)
        self.classifier.bias.zero_()

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        labels = self.memory.labels[batch.ids.to(images.device, non_blocking=True)]
        features = self.backbone(images)
        logits = self.classifier(features)
        loss = weighted_cross_entropy(logits, labels, 1 / self.sizes.clamp(min=1)[labels])
        accuracy = (logits.argmax(1) == labels).float().mean()
        return StepOutput(
            loss,
            {"accuracy": accuracy},
            features.detach(),
            per_sample=lambda: F.cross_entropy(logits.detach().float(), labels, reduction="none"),
        )


def features_view(training: ViewSpec) -> ViewSpec:
    """What is clustered: the middle of the image, without random draws, at the size and scale of training."""
    return replace(view("eval"), size=training.size, mean=training.mean, std=training.std)


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross entropy of (B, K) logits, weighted by `weights` (B,); averaged over ranks, that of the global batch.

    Divided by the sum of the weights of the global batch.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (weights * losses).sum() * world_size() / all_reduce_sum(weights.sum())
