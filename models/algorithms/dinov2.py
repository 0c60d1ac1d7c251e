"""DINOv2: Learning Robust Visual Features without Supervision (Oquab et al. 2023, arXiv 2304.07193)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from ...pipelines.spec import Batch
from ...schema.bounds import Count, Momentum, NotNegative
from ..algorithm import Progress, StepOutput
from ..backbones.vit import ViT
from ..self_distillation.center import Center, spread
from ..self_distillation.method import SelfDistillation, SelfDistillationConfig


class DINOv2(SelfDistillation):
    """DINO's loss between crops, iBOT's on masked patches, and KoLeo, which spreads the class tokens of a crop out.

    What the teacher says is centred and sharpened (the short recipe), or assigned to prototypes by Sinkhorn's algorithm
    over the global batch (the long ones).
    """

    sample_loss = "cross-entropy of its crops and of its masked patches with the teacher's words, without KoLeo"

    @dataclass(frozen=True)
    class Config(SelfDistillationConfig):
        name: Literal["dinov2"] = "dinov2"
        backbone: ViT.Config = ViT.Config(
            "vit_large",
            pool="cls",
            positions="learned",
            layer_scale=1e-5,
            drop_path=0.3,
            drop_path_form="subsets",
            init="dinov2",
            resize_offset=0.1,
        )
        targets: Literal["centering", "sinkhorn"] = "centering"
        center_momentum: Momentum = 0.9
        koleo: NotNegative = 0.1  # its weight
        koleo_group: Count = 64  # images among which neighbours are looked for, of the global batch
        koleo_nearest: Count = 1  # how many neighbours each has

        deal: ClassVar[Literal["between"]] = "between"

        def smoke(self) -> DINOv2.Config:
            return replace(super().smoke(), koleo_group=4)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.center = self.patch_center = None
        if config.targets == "centering":
            patches = config.prototypes if config.patch_head is None else config.patch_head.prototypes
            self.center = Center(config.prototypes, config.center_momentum)
            self.patch_center = Center(patches, config.center_momentum)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        config, crops = self.config, self.crops(batch, progress)
        of_crops = self.targets(crops.teacher, self.center, progress)
        of_patches = self.patch_targets(crops, self.patch_center, progress)
        losses = {
            "loss_cls": self.crop_loss(crops, of_crops, progress),
            "loss_patch": self.patch_loss(crops, of_patches),
            "loss_koleo": config.koleo * spread(crops.features, config.koleo_group, config.koleo_nearest),
            **self.gram_losses(crops, batch, progress),
        }
        if self.center is not None:
            self.center.see(crops.teacher.mean((0, 1)), crops.teacher.shape[:2].numel())
            self.see_patches(self.patch_center, crops.teacher_patches, crops.teacher_prototypes)
        return self.output(crops, losses, of_crops, of_patches)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        super().after_step(progress)
        if self.center is not None:
            self.center.update()
            self.patch_center.update()
