"""iBOT: Image BERT Pre-Training with Online Tokenizer (Zhou et al. 2022, arXiv 2111.07832)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...pipelines.spec import Batch, CropMask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, Natural
from ..algorithm import Progress, StepOutput
from ..backbones.vit import ViT
from ..heads import DINOHead
from ..self_distillation.center import Center
from ..self_distillation.method import SelfDistillation, SelfDistillationConfig
from ..self_distillation.schedules import line


class IBOT(SelfDistillation):
    """DINO's loss between crops, and of every masked patch the same loss with what the teacher, who sees it, says.

    Both are centred and sharpened, each with a centre of its own: that of patches is the mean over all patches of the
    large crops. One head serves both, unless there is a `patch_head`.
    """

    sample_loss = "cross-entropy of its crops and of its masked patches with the teacher's words"

    @dataclass(frozen=True)
    class Config(SelfDistillationConfig):
        name: Literal["ibot"] = "ibot"
        first: ViewSpec = view("ibot_2x224_10x96.first")
        second: ViewSpec = view("ibot_2x224_10x96.second")
        small: ViewSpec = view("ibot_2x224_10x96.small")
        backbone: ViT.Config = ViT.Config("vit_small", pool="cls", positions="learned", drop_path=0.1, init="dinov3")
        prototypes: Count = 8192
        momentum: Momentum = 0.996
        center_momentum: Momentum = 0.9
        freeze_prototypes: Natural = 1  # epochs

        @property
        def mask(self) -> CropMask:
            side = self.first.size // self.backbone.patch_size
            share = {"chance": self.mask_chance, "ratio": self.mask_ratio}
            return CropMask((side, side), deal="drawn", min_block=max(1, (side // 3) ** 2), max_share=1.0, **share)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        patches = config.prototypes if config.patch_head is None else config.patch_head.prototypes
        self.center = Center(config.prototypes, config.center_momentum)
        self.patch_center = Center(patches, config.center_momentum)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        crops = self.crops(batch, progress)
        of_crops = self.targets(crops.teacher, self.center, progress)
        of_patches = self.patch_targets(crops, self.patch_center, progress)
        losses = {
            "loss_cls": self.crop_loss(crops, of_crops, progress),
            "loss_patch": self.patch_loss(crops, of_patches),
            **self.gram_losses(crops, batch, progress),
        }
        self.center.see(crops.teacher.mean((0, 1)), crops.teacher.shape[:2].numel())
        return self.output(crops, losses, of_crops, of_patches)

    def teach_patches(self, head: DINOHead, patches: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The centre is that of all patches."""
        vectors = head.project(patches)
        self.see_patches(self.patch_center, vectors, head[1].rows())
        return vectors[places]

    def teacher_temperature(self, progress: Progress) -> float:
        """As the authors: the same through an epoch."""
        steps = progress.steps_per_epoch
        length = self.warmup_steps(progress) // steps
        ends = self.config.teacher_temperature_from, self.config.teacher_temperature
        return line(*ends, length, progress.epoch)

    def after_backward(self, progress: Progress) -> None:
        if progress.epoch < self.config.freeze_prototypes:
            for head in (self.head, self.patch_head):
                for parameter in () if head is None else head[1].parameters():
                    parameter.grad = None

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        super().after_step(progress)
        self.center.update()
        self.patch_center.update()
