"""The base of iBOT, DINOv2 and DINOv3: views, masks, heads, teacher and centres."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.prototype_ce import prototype_ce
from ...kernels.sinkhorn import sinkhorn
from ...lengths import length_in_steps
from ...pipelines.spec import Batch, CropMask, InputSpec, Mask, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Momentum, NotNegative, Part, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.vit import ViT
from ..heads import DINOHead, Prototypes
from ..sample_losses import prototype_losses
from ..smoke import tiny_backbone, tiny_view
from ..teacher import Teacher
from .center import Center
from .gram import OWN, Gram, GramTeacher
from .patch_loss import PatchTargets, autocast_to, patch_loss, patch_row_losses
from .schedules import line
from .subsets import dealt_subsets


@dataclass(frozen=True)
class PatchHead:
    """A head of its own for patches."""

    hidden: Count = 2048
    bottleneck: Count = 256
    prototypes: Count = 65536


@dataclass(frozen=True)
class SelfDistillationConfig(Algorithm.Config):
    """What recipes of the three methods say alike."""

    first: ViewSpec = view("dinov2.first")
    second: ViewSpec = view("dinov2.second")
    small: ViewSpec = view("dinov2.small")
    backbone: ViT.Config = ViT.Config("vit_large", pool="cls", positions="learned")
    hidden: Count = 2048
    bottleneck: Count = 256
    prototypes: Count = 65536
    patch_head: PatchHead | None = None  # None: the class token's head also serves the patches
    momentum: Momentum = 0.992  # of the teacher at the start
    momentum_end: float = 1.0  # where a half cosine takes it
    temperature: Positive = 0.1  # of the student
    teacher_temperature: Positive = 0.07
    teacher_temperature_from: Positive = 0.04  # at the start of a straight line
    teacher_warmup: float | str = "30 epochs"  # its length: "500 steps", or a share of the run
    mask_chance: float = 0.5  # the share of large crops that are masked
    mask_ratio: tuple[Part, Part] = (0.1, 0.5)  # the share of their patches that is hidden
    patch_weight: NotNegative = 1.0  # of the loss of masked patches
    gram: Gram | None = None  # similarities of patches, held to an earlier teacher's

    deal: ClassVar[Literal["drawn", "between", "upper"]] = "upper"

    def __post_init__(self) -> None:
        for key in ("temperature", "teacher_temperature", "teacher_temperature_from"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: must be positive, not {getattr(self, key)}")
        for key in ("momentum", "momentum_end"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: lies in [0, 1], not {getattr(self, key)}")
        try:
            length_in_steps(self.teacher_warmup, 1, 1)
        except ValueError as fault:
            raise ValueError(f"teacher_warmup: {fault}") from None
        if (self.first.size, self.first.count, self.second.count) != (self.second.size, 1, 1):
            raise ValueError("second: must be one view of the size of the first, which is one, too")
        for name in ("first", "small"):
            size, patch = getattr(self, name).size, self.backbone.patch_size
            if size % patch:
                raise ValueError(f"{name}: {size} px are not whole patches of {patch} (backbone.patch_size)")
        if self.gram is not None:
            side = self.gram.side(self.first.size)
            if side % self.backbone.patch_size:
                given = f"{side} px, {self.gram.enlarge:g} times {self.first.size},"
                raise ValueError(f"gram: {given} are not whole patches of {self.backbone.patch_size} (gram.enlarge)")
            if "window" in (self.first.crop, self.second.crop):
                raise ValueError("gram: a window cannot be cut again at another size; its views are crops")
        try:
            _ = self.mask
        except ValueError as fault:
            raise ValueError(f"mask_{fault}") from None

    @property
    def mask(self) -> CropMask:
        side = self.first.size // self.backbone.patch_size
        return CropMask(grid=(side, side), deal=self.deal, chance=self.mask_chance, ratio=self.mask_ratio)

    @property
    def gram_views(self) -> tuple[ViewSpec, ...]:
        """The large crops as the Gram teacher sees them; () without it."""
        return () if self.gram is None else (self.gram.view(self.first), self.gram.view(self.second))

    def begins(self, total_steps: int, steps_per_epoch: int) -> dict[str, int]:
        first = 0 if self.gram is None else length_in_steps(self.gram.begin, total_steps, steps_per_epoch)
        return {view.name: first for view in self.gram_views}

    def smoke(self):
        tiny = {name: tiny_view(getattr(self, name)) for name in ("first", "second")}
        tiny |= {"small": tiny_view(self.small, 16), "backbone": tiny_backbone(self.backbone)}
        tiny |= {"hidden": 32, "bottleneck": 16, "prototypes": 32}
        if self.patch_head is not None:
            tiny["patch_head"] = PatchHead(hidden=24, bottleneck=12, prototypes=24)
        if self.gram is not None:
            tiny["gram"] = self.gram.smoke()
        return replace(self, **tiny)


@dataclass
class Crops:
    """What student and teacher make of the crops of a batch; "global" crops come first, in the order of views.

    M patches are masked; w of a patch is 1 / (masked patches of its crop) / (large crops), so that the sum over patches
    of w times a loss is the mean over large crops of their patches' mean.
    """

    features: torch.Tensor  # (2, B, D) the student's class tokens of the masked large crops
    student: torch.Tensor  # (2 + n, B, K) float32 logits of all crops
    teacher: torch.Tensor  # (2, B, K) float32
    patches: torch.Tensor  # (M, D') masked patches, as prototypes meet them
    prototypes: torch.Tensor  # (K', D') which they meet
    teacher_patches: torch.Tensor  # (M, D')
    teacher_prototypes: torch.Tensor  # (K', D')
    weights: torch.Tensor  # (M,) float32: w
    samples: torch.Tensor  # (M,) int64: which sample of the batch each belongs to
    embedding: torch.Tensor  # (B, D) the teacher's, of the first crops
    maps: torch.Tensor  # (2, B, L, D) the student's patches of the large crops


class SelfDistillation(Algorithm):
    """A teacher, the moving average of the student, sees two large crops; the student sees them with patches masked,
    and small crops, and predicts what the teacher says of the image and of each masked patch.

    The encoder is the teacher's, as the authors evaluate and release it.
    """

    prototypes_form: ClassVar[Prototypes] = "gain"

    def __init__(self, config: SelfDistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(config.backbone, config.first.size)
        features, own = self.backbone.features, config.patch_head
        self.mask_token = nn.Parameter(torch.zeros(1, 1, features))
        self.head = DINOHead(features, config.hidden, config.bottleneck, config.prototypes, self.prototypes_form)
        parts = {"backbone": self.backbone, "head": self.head}
        self.patch_head = None
        if own is not None:
            self.patch_head = DINOHead(features, own.hidden, own.bottleneck, own.prototypes, self.prototypes_form)
            parts["patch_head"] = self.patch_head
        self._forwards = 0  # since the last step, which may have several micro-batches
        self.teacher = Teacher(**parts)
        for module in self.teacher.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = 0.0
        self.gram = None if config.gram is None else GramTeacher(config.gram, self.teacher.backbone)

    def inputs(self) -> InputSpec:
        spec = super().inputs()
        return replace(spec, views=(*spec.views, *self.config.gram_views))

    @property
    def wants(self) -> str | None:
        gram = self.config.gram
        return None if gram is None or gram.teacher == OWN else gram.teacher

    def take_teacher(self, module: nn.Module, view: ViewSpec, what: str) -> None:
        """The Gram teacher. Raises `UserError` for an encoder of another shape than the run's."""
        self.gram.take(module)

    @property
    def encoder(self) -> nn.Module:
        return self.teacher.backbone

    # for rates that decay by layer: the mask token is part of the embedding, heads come last

    @property
    def num_layers(self) -> int:
        return self.backbone.num_layers

    def layer_of(self, parameter: str) -> int:
        return 0 if parameter == "mask_token" else self.num_layers - 1

    # ---- what the methods' losses are made of

    def crops(self, batch: Batch, progress: Progress) -> Crops:
        first, second, small = (batch.views[name] for name in self.view_names)
        large, mask = torch.cat([first, second]), batch.mask  # (2, B, 3, S, S)
        hidden, places, weights = self.masked(mask)
        tokens = self.tokens(large, progress, "large", hidden=hidden, mask_token=self.mask_token)
        cls, patches = tokens[:, 0], tokens[:, 1:].flatten(0, 1)
        local = self.tokens(small, progress, "small")[:, 0]
        self._forwards += 1
        heads = self.head, self.patch_head or self.head
        student = heads[0](torch.cat([cls, local])).float().unflatten(0, (2 + len(small), -1))
        with torch.no_grad():
            teacher = self.teacher
            seen = teacher.backbone.tokens(large.flatten(0, 1))
            own_heads = teacher.head, getattr(teacher, "patch_head", teacher.head)
            of_patches = self.teach_patches(own_heads[1], seen[:, 1:].flatten(0, 1), places)
            teacher_prototypes = own_heads[1][1].rows()
        return Crops(
            features=cls.unflatten(0, (2, -1)),
            student=student,
            teacher=own_heads[0](seen[:, 0]).detach().float().unflatten(0, (2, -1)),
            patches=heads[1].project(patches[places]),
            prototypes=heads[1][1].rows(),
            teacher_patches=of_patches,
            teacher_prototypes=teacher_prototypes,
            weights=weights,
            samples=places // hidden.shape[1] % large.shape[1],
            embedding=seen[: large.shape[1], 0],
            maps=tokens[:, 1:].unflatten(0, (2, -1)),
        )

    @property
    def view_names(self) -> tuple[str, str, str]:
        return self.config.first.name, self.config.second.name, self.config.small.name

    @staticmethod
    def masked(mask: Mask) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden (2B, L) of the large crops, one view after the other; the places (M,) of hidden patches among all; and
        their weights (M,). M is known on the host, so nothing waits for the device."""
        hidden = mask.hidden.transpose(0, 1).flatten(0, 1)
        count = int(mask.counts.sum())
        places = (~hidden).flatten().to(torch.uint8).argsort(stable=True)[:count]
        share = 1 / hidden.sum(1).clamp(min=1) / len(hidden)
        return hidden, places, share.float()[places // hidden.shape[1]]

    def tokens(self, images: torch.Tensor, progress: Progress, group: str, **masked) -> torch.Tensor:
        """(V B, 1 + L, D): the student's normalised tokens of crops (V, B, 3, S, S) of one size."""
        return self.backbone.tokens(images.flatten(0, 1), **masked, **self.draws(images, progress, group))

    def draws(self, images: torch.Tensor, progress: Progress, group: str) -> dict:
        """What is drawn for the student's pass over crops of one size, as options of `ViT.outputs`: the same on any
        number of ranks."""
        config = self.config.backbone
        if not self.training or config.drop_path_form != "subsets" or not config.drop_path:
            return {}
        group = f"{group}/{self._forwards}" if self._forwards else group
        shape = config.drop_path, len(self.backbone.blocks), *images.shape[:2]
        return {"subsets": dealt_subsets(*shape, progress, group, images.device)}

    def teach_patches(self, head: DINOHead, patches: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The masked ones (M, D') of the teacher's patches (2B L, D), as prototypes meet them."""
        return head.project(patches[places])

    @staticmethod
    @torch.no_grad()
    def see_patches(center: Center, vectors: torch.Tensor, prototypes: torch.Tensor) -> None:
        """The mean of the logits of `vectors` (M, D'): prototypes are linear, so they meet the mean of these."""
        with torch.autocast(vectors.device.type, enabled=False):
            mean = vectors.to(prototypes.dtype).mean(0)
            center.see(prototypes @ mean, len(vectors))

    def warmup_steps(self, progress: Progress) -> int:
        return length_in_steps(self.config.teacher_warmup, progress.total_steps, progress.steps_per_epoch)

    def teacher_temperature(self, progress: Progress) -> float:
        ends = self.config.teacher_temperature_from, self.config.teacher_temperature
        return line(*ends, self.warmup_steps(progress), progress.step)

    def targets(self, logits: torch.Tensor, center: Center | None, progress: Progress) -> dict:
        """Arguments of `prototype_ce` for a teacher's logits (T, B, K): centred and sharpened, or without `center`
        assigned by Sinkhorn's algorithm over all rows of all ranks."""
        options = self.cross_entropy(center, progress)
        if center is None:
            assigned = sinkhorn(logits.flatten(0, 1), epsilon=self.teacher_temperature(progress))
            return options | {"teacher": assigned.unflatten(0, logits.shape[:2])}
        return options | {"teacher": logits}

    def patch_targets(self, crops: Crops, center: Center | None, progress: Progress) -> PatchTargets:
        """The same for masked patches, whose logits are there as a whole for Sinkhorn's algorithm alone."""
        options = self.cross_entropy(center, progress)
        vectors, prototypes = crops.teacher_patches, autocast_to(crops.teacher_prototypes)
        if center is not None:
            return PatchTargets(vectors, prototypes, options)
        assigned = sinkhorn(F.linear(vectors, prototypes).float(), epsilon=self.teacher_temperature(progress))
        return PatchTargets(assigned, None, options)

    def cross_entropy(self, center: Center | None, progress: Progress) -> dict:
        """Temperatures and centre, as `prototype_ce` takes them."""
        found = {"student_temperature": self.config.temperature}
        if center is None:
            return found
        return found | {"center": center.mean, "teacher_temperature": self.teacher_temperature(progress)}

    def crop_loss(self, crops: Crops, targets: dict, progress: Progress) -> torch.Tensor:
        """Mean over all pairs of a large crop's teacher and another crop; beside Gram, small crops may count less."""
        small = len(crops.student) - 2
        weight = 1.0 if self.gram is None else self.gram.local_weight(progress)
        if weight == 1 or not small:
            return prototype_ce(crops.student, **targets)
        crossed = prototype_ce(crops.student[:2], **targets)
        local = prototype_ce(crops.student[2:], **targets, pairs="all")
        return (crossed + small * weight * local) / (1 + small)

    def gram_losses(self, crops: Crops, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Of the masked large crops; {} without Gram."""
        if self.gram is None:
            return {}
        grid, images = self.backbone.grid_of(batch.views[self.config.first.name][0]), None
        if self.gram.share(progress) is not None:
            images = torch.cat([batch.views[view.name] for view in self.config.gram_views]).flatten(0, 1)
        return self.gram.losses(crops.maps.flatten(0, 1), images, grid, progress)

    def patch_loss(self, crops: Crops, targets: PatchTargets) -> torch.Tensor:
        """Mean over large crops of the mean cross-entropy of their masked patches, times `patch_weight`."""
        return patch_loss(crops.patches, crops.prototypes, targets, self.config.patch_weight * crops.weights)

    def output(
        self, crops: Crops, losses: dict[str, torch.Tensor], of_crops: dict, of_patches: PatchTargets
    ) -> StepOutput:
        """The sum of `losses`; `of_crops` and `of_patches` are the targets of the two cross-entropies."""

        def per_sample() -> torch.Tensor:
            own = prototype_losses(crops.student, **of_crops)
            rows = patch_row_losses(crops.patches, crops.prototypes, of_patches)
            weights = self.config.patch_weight * len(own) * crops.weights
            return own.index_add(0, crops.samples, weights * rows)

        return StepOutput(
            loss=sum(losses.values()),
            metrics={name: value.detach() for name, value in losses.items()},
            embedding=crops.embedding,
            per_sample=per_sample,
        )

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        start, end = self.config.momentum, self.config.momentum_end
        self.teacher.update(self, end + (start - end) * (1 + math.cos(math.pi * progress.fraction)) / 2)
        self._forwards = 0
        if self.gram is not None:
            self.gram.follow(self.teacher.backbone, progress)
