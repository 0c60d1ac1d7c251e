"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al. 2021, arXiv 2104.14294)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from ...kernels.prototype_ce import prototype_ce
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Natural, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import BackboneConfig, ViT, build_backbone
from ..distributed import gather_with_gradient
from ..heads import DINOHead
from ..sample_losses import prototype_losses
from ..smoke import tiny_backbone, tiny_view
from ..teacher import Teacher, cosine_momentum


class DINO(Algorithm):
    """Every crop predicts what the teacher, centred and sharpened, says of the two global crops.

    Follows the authors' script: gradients of the prototypes are dropped during `freeze_prototypes` epochs, drop path
    is the student's alone, the teacher moves after the optimizer step.
    """

    sample_loss = "cross-entropy of its crops with the teacher's word, the mean over pairs"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["dino"] = "dino"
        first: ViewSpec = view("dino_2x224_8x96.first")
        second: ViewSpec = view("dino_2x224_8x96.second")
        small: ViewSpec = view("dino_2x224_8x96.small")
        backbone: BackboneConfig = ViT.Config("vit_base", pool="cls", positions="learned", drop_path=0.1)
        hidden: Count = 2048
        bottleneck: Count = 256
        prototypes: Count = 65536
        momentum: Momentum = 0.996  # of the teacher at the start; 1 at the end
        temperature: Positive = 0.1  # of the student
        teacher_temperature: Positive = 0.04
        teacher_temperature_from: Positive = 0.04  # at the start of a linear warm-up, one step an epoch
        teacher_warmup: Natural = 0  # epochs of that warm-up
        center_momentum: Momentum = 0.9
        freeze_prototypes: Natural = 1  # epochs

        def __post_init__(self) -> None:
            for key in ("temperature", "teacher_temperature", "teacher_temperature_from"):
                if getattr(self, key) <= 0:
                    raise ValueError(f"{key}: must be positive, not {getattr(self, key)}")

        def smoke(self) -> DINO.Config:
            tiny = {
                "first": tiny_view(self.first),
                "second": tiny_view(self.second),
                "small": tiny_view(self.small, 16),
            }
            narrow = {"hidden": 32, "bottleneck": 16, "prototypes": 32}
            return replace(self, **tiny, backbone=tiny_backbone(self.backbone), **narrow)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.first.size)
        self.head = DINOHead(self.backbone.features, config.hidden, config.bottleneck, config.prototypes)
        self.teacher = Teacher(backbone=self.backbone, head=self.head)
        for module in self.teacher.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = 0.0
        self.register_buffer("center", torch.zeros(config.prototypes))
        self._teacher_means: list[torch.Tensor] = []  # since the last optimizer step

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        first, second, small = (batch.views[spec.name] for spec in self.inputs().views)
        large = torch.cat([first, second])  # (2, B, 3, S, S)
        crops = len(large) + len(small)
        features = torch.cat([self.backbone(x.flatten(0, 1)) for x in (large, small)])
        student = self.head(features).float().unflatten(0, (crops, -1))
        with torch.no_grad():
            teacher = self.teacher.head(self.teacher.backbone(large.flatten(0, 1))).float().unflatten(0, (2, -1))
            self._teacher_means.append(teacher.mean((0, 1)))
        temperatures = {
            "student_temperature": self.config.temperature,
            "teacher_temperature": self.teacher_temperature(progress.epoch),
        }
        return StepOutput(
            loss=prototype_ce(student, teacher, self.center, **temperatures),
            embedding=features[: large.shape[1]].detach(),
            views=features[: 2 * large.shape[1]].unflatten(0, (2, -1)).detach(),
            per_sample=partial(prototype_losses, student, teacher, self.center, **temperatures),
        )

    def teacher_temperature(self, epoch: int) -> float:
        """Rises linearly over the first `teacher_warmup` epochs, as numpy.linspace does, and then stays."""
        start, end, length = (
            self.config.teacher_temperature_from,
            self.config.teacher_temperature,
            self.config.teacher_warmup,
        )
        return end if epoch >= length - 1 else start + (end - start) * epoch / (length - 1)

    def after_backward(self, progress: Progress) -> None:
        if progress.epoch < self.config.freeze_prototypes:
            self.head[1].weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        self.teacher.update(self, cosine_momentum(self.config.momentum, progress))
        mean = gather_with_gradient(torch.stack(self._teacher_means).mean(0)).mean(0)
        self._teacher_means.clear()
        self.center.lerp_(mean, 1 - self.config.center_momentum)
