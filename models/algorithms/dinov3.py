"""DINOv3 (Simeoni et al. 2025, arXiv 2508.10104)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from ...pipelines.rng import uniform
from ...pipelines.spec import Batch
from ...schema.bounds import Count, NotNegative, Positive
from ..algorithm import Progress, StepOutput
from ..backbones.vit import ViT
from ..heads import Prototypes
from ..self_distillation.center import spread
from ..self_distillation.method import PatchHead, SelfDistillation, SelfDistillationConfig


class DINOv3(SelfDistillation):
    """DINOv2's three losses, with assignments by Sinkhorn's algorithm, heads apart, plain prototypes, rotary positions,
    and as many masked patches at every step.

    `rotary_rescale` R multiplies the coordinates of rotary positions by one factor, log-uniform in [1 / R, R], anew at
    every block, for large and small crops apart; the student's in training alone. It is a function of (seed, step,
    block, size of crops), the same on all ranks.
    """

    sample_loss = "cross-entropy of its crops and of its masked patches with the teacher's words, without KoLeo"
    prototypes_form: ClassVar[Prototypes] = "plain"

    @dataclass(frozen=True)
    class Config(SelfDistillationConfig):
        name: Literal["dinov3"] = "dinov3"
        backbone: ViT.Config = ViT.Config(
            "vit_large",
            pool="cls",
            positions="rotary",
            layer_scale=1e-5,
            drop_path=0.3,
            drop_path_form="subsets",
            init="dinov3",
        )
        patch_head: PatchHead = PatchHead()
        koleo: NotNegative = 0.1  # its weight
        koleo_group: Count = 64  # images among which neighbours are looked for, of the global batch
        koleo_nearest: Count = 1  # how many neighbours each has
        rotary_rescale: Positive = 1.0
        # precision of rotary tables in training: float32, or bfloat16, in which the authors' runs had them
        rotary_tables: Literal["as_written", "as_run"] = "as_written"
        untie_norms: bool = False  # class token and registers of small crops pass a last norm of their own in training

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rotary_rescale < 1:
                raise ValueError(f"rotary_rescale: is 1 or more, not {self.rotary_rescale}")
            if (self.rotary_rescale > 1 or self.rotary_tables == "as_run") and self.backbone.positions != "rotary":
                raise ValueError("rotary_rescale, rotary_tables: need backbone.positions: rotary")

        def smoke(self) -> DINOv3.Config:
            return replace(super().smoke(), koleo_group=4)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        if config.rotary_tables == "as_run":
            for module in (self, self.teacher, self.gram):
                if module is not None:
                    module.backbone.rotary_dtype = torch.bfloat16
        self.small_norm = None
        if config.untie_norms:
            self.small_norm = nn.LayerNorm(self.backbone.features, eps=config.backbone.norm_eps)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        config, crops = self.config, self.crops(batch, progress)
        of_crops = self.targets(crops.teacher, None, progress)
        of_patches = self.patch_targets(crops, None, progress)
        losses = {
            "loss_cls": self.crop_loss(crops, of_crops, progress),
            "loss_patch": self.patch_loss(crops, of_patches),
            "loss_koleo": config.koleo * spread(crops.features, config.koleo_group, config.koleo_nearest),
            **self.gram_losses(crops, batch, progress),
        }
        return self.output(crops, losses, of_crops, of_patches)

    def tokens(self, images: torch.Tensor, progress: Progress, group: str, **masked) -> torch.Tensor:
        if group != "small" or self.small_norm is None or not self.training:
            return super().tokens(images, progress, group, **masked)
        options = self.draws(images, progress, group)
        (x,) = self.backbone.outputs(images.flatten(0, 1), (len(self.backbone.blocks) - 1,), **masked, **options)
        return self.small_norm(x[:, :1])  # of small crops nothing but the class token is looked at

    def draws(self, images: torch.Tensor, progress: Progress, group: str) -> dict:
        found = super().draws(images, progress, group)
        if self.training and self.config.rotary_rescale > 1:
            found["rotary_scales"] = self.rotary_scales(progress, group, images.device)
        return found

    @torch.compiler.disable  # its key is a checksum of words, which no graph can hold
    def rotary_scales(self, progress: Progress, group: str, device: torch.device) -> torch.Tensor:
        """(depth,) float32"""
        blocks = torch.arange(len(self.backbone.blocks), device=device)
        u = uniform(progress.seed, f"rotary/{group}", progress.step, blocks, 1)[:, 0]
        return (self.config.rotary_rescale ** (2 * u - 1)).float()
