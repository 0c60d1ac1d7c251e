"""CAPI: Cluster and Predict Latent Patches for Improved Masked Image Modeling (Darcet et al. 2025, arXiv
2502.08769)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.ranks import all_reduce_sum
from ...kernels.sinkhorn.reference import all_reduce
from ...pipelines.rng import uniform
from ...pipelines.spec import Batch, InverseBlockMask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, NotNegative, Part, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.capi import CAPIBlock, CAPIEncoder, init_capi
from ..heads import UnitLinear
from ..smoke import PATCH, tiny_view
from ..teacher import Teacher
from ..words import rows

_CUT = 0.8  # of every cosine, the part of its length that is gone


class CAPI(Algorithm):
    """Of patches that a student does not see, predict to which clusters a momentum teacher's features of them belong.

    The clusters are a linear layer that learns beside it, to agree with Sinkhorn's balanced assignments of the batch,
    place by place. The predictor's tokens attend to the encoder's and not to each other. The clusters' own rate and
    decay are a group of the optimizer (`optim.groups`): two AdamW and one with two groups take the same steps.
    """

    no_pictures = "predicts clusters, no pictures"
    sample_loss = "cross-entropy of its predicted patches, and of its patches' clusters"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["capi"] = "capi"
        view: ViewSpec = view("capi")
        backbone: CAPIEncoder.Config = CAPIEncoder.Config()
        predictor_depth: Count = 12
        clusters: Count = 16384
        mask_ratio: Part = 0.65
        predicted: float = 0.05  # of the hidden patches
        temperature: Positive = 0.12  # of student and clusters
        target_temperature: Positive = 0.06
        iterations: Count = 3  # of Sinkhorn
        momentum: Momentum = 0.999  # of the teacher when `momentum_warmup` ends; 1 at the start
        momentum_warmup: NotNegative = 0.1  # share of the run

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.size % self.backbone.patch_size:
                raise ValueError(
                    f"view: needs one view whose size is a multiple of backbone.patch_size "
                    f"({self.backbone.patch_size}), got {self.view.count} of {self.view.size} px"
                )
            if min(self.temperature, self.target_temperature) <= 0 or not 0 < self.predicted <= 1:
                raise ValueError("temperature, target_temperature, predicted: must be positive, and a share")
            try:
                _ = self.mask
            except ValueError as fault:
                raise ValueError(f"mask_{fault}") from None

        def smoke(self) -> CAPI.Config:
            tiny = CAPIEncoder.Config(24, 2, 2, PATCH, 4, self.backbone.drop_path, self.backbone.rotary)
            return replace(
                self, view=tiny_view(self.view), backbone=tiny, predictor_depth=1, clusters=16, predicted=0.3
            )

        @property
        def mask(self) -> InverseBlockMask:
            side = self.view.size // self.backbone.patch_size
            return InverseBlockMask(grid=(side, side), ratio=self.mask_ratio)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, width = config, config.backbone.width
        self.backbone = CAPIEncoder(config.backbone)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        blocks = (
            CAPIBlock(width, config.backbone.heads, config.backbone.drop_path) for _ in range(config.predictor_depth)
        )
        self.predictor = nn.ModuleList(blocks)
        self.predictor_norm = nn.RMSNorm(width, eps=1e-5, elementwise_affine=False)
        self.head = UnitLinear(width, config.clusters)
        self.clusters = nn.Linear(width, config.clusters)
        init_capi(self.predictor)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.normal_(self.clusters.weight)
        nn.init.zeros_(self.clusters.bias)
        self.teacher = Teacher(backbone=self.backbone)
        self.teacher.apply(_without_drop_path)

    @property
    def encoder(self) -> CAPIEncoder:
        return self.backbone

    def predict(self, images: Tensor, keep: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, P, clusters) of the patches asked (B, P), and the encoder's own of those at keep (B, K, width)."""
        context, places = self.backbone.tokens(images, keep)
        grid = (side // self.backbone.patch_size for side in images.shape[-2:])
        everywhere = self.backbone.places(*grid, images.device).expand(len(images), -1, -1)
        x = self.mask_token.to(context.dtype).expand(len(images), asked.shape[1], -1)
        tables = self.backbone.table(rows(everywhere, asked)), self.backbone.table(places)
        for block in self.predictor:
            x = block(x, tables[0], context, tables[1])
        x = F.normalize(self.predictor_norm(x), dim=-1)
        return self.head(x).float(), context[:, self.backbone.registers.shape[1] :]

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, mask = batch.views[self.config.view.name][0], batch.mask
        asked = self.asked(batch, progress)
        with torch.no_grad():
            features = F.normalize(self.teacher.backbone.patches(images).float(), dim=-1, eps=1e-7)
        logits = self.clusters(features).float()
        temperature = self.config.temperature
        with torch.no_grad():
            options = {"temperature": self.config.target_temperature, "iterations": self.config.iterations}
            targets = positional_sinkhorn(logits, **options)
        clustering = -(targets * (logits / temperature).log_softmax(-1)).sum(-1)  # (B, N)
        predicted, seen = self.predict(images, mask.keep, asked)
        error = -(rows(targets, asked) * (predicted / temperature).log_softmax(-1)).sum(-1)  # (B, P)
        return StepOutput(
            loss=error.mean() + clustering.mean(),
            metrics={"loss_student": error.detach().mean(), "loss_clusters": clustering.detach().mean()},
            embedding=seen.mean(1).detach(),
            patches=seen.detach(),
            per_sample=lambda: (error.mean(1) + clustering.mean(1)).detach(),
        )

    def asked(self, batch: Batch, progress: Progress) -> Tensor:
        """(B, P) hidden patches to be predicted, chosen uniformly: a function of (seed, step, sample)."""
        hidden = batch.mask.hidden
        count = max(
            1, int(self.config.mask.hidden / self.config.mask.patches * hidden.shape[1] * self.config.predicted)
        )
        drawn = uniform(progress.seed, "capi/asked", progress.step, batch.ids, hidden.shape[1]).float()
        return (drawn.to(hidden.device, non_blocking=True) + hidden).topk(count, dim=1).indices

    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, self.momentum(progress))

    def momentum(self, progress: Progress) -> float:
        """From 1 in a straight line to `momentum`, then towards 1 by a cosine of which the last fifth is cut off."""
        warmup, base = self.config.momentum_warmup * progress.total_steps, self.config.momentum
        if progress.step < warmup:
            return 1 - (1 - base) * progress.step / warmup
        part = (progress.step - warmup) / max(1, progress.total_steps - warmup)
        return 1 - (1 - base) * float(truncated_cosine(np.array(part)))


def truncated_cosine(progress: np.ndarray) -> np.ndarray:
    """Factors on the peak rate for shares of what follows the warm-up: a cosine whose last fifth is cut off, so that it
    ends at 9.5 % of the peak. The recipes' `optim.schedule`."""
    return 0.5 * (1 + np.cos(np.pi * _CUT * progress))


@torch.no_grad()
def positional_sinkhorn(logits: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """Assignments (B, N, K) of logits (B, N, K): of each place by itself, balanced over the batch of all ranks.

    `iterations` times every cluster's assignments of a place are divided by their sum over the samples of all ranks,
    then every patch's by its sum.
    """
    x = logits / temperature
    largest = all_reduce(x.amax(0), "MAX")
    x = (x - largest).exp_()
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(iterations):
        x /= all_reduce_sum(x.sum(0)).clamp(min=tiny)
        x /= x.sum(-1, keepdim=True).clamp(min=tiny)
    return x


def _without_drop_path(module: nn.Module) -> None:
    if hasattr(module, "drop_path"):
        module.drop_path = 0.0
