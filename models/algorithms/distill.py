"""Distillation: a student of any kind learns what a frozen encoder says of images, without labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, notice
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, Positive
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import AnyBackboneConfig, ResNet, ViT, build_backbone
from ..distributed import gather_with_gradient
from ..memory import Queue
from ..smoke import tiny_backbone, tiny_view
from ..targets.cached import CachedTargets
from ..targets.frozen import Frozen

UNTRAINED = "untrained"


class Distill(Algorithm):
    """The similarities of an image to a queue of others, and those of its patches to each other, are a teacher's.

    Global: KL divergence of softmax(t Q / temperature) and softmax(p(s) Q / temperature), with Q the teacher's features
    of the batch and of a queue. Local: the same of every patch with the patches of its image, at the teacher's grid.
    Neither asks for the teacher's features themselves, so widths may differ (`features` is that of the teacher).
    The teacher sees the student's pixels, at its own size and normalisation.
    """

    sample_loss = "divergence of its similarities to others, and of its patches' to each other"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["distill"] = "distill"
        view: ViewSpec = view("distill")
        backbone: AnyBackboneConfig = ViT.Config("vit_small", pool="cls", positions="learned")
        # a run directory, a checkpoint, an encoder.safetensors, timm:NAME, torchvision:NAME; or "untrained": a random
        # encoder of the student's kind, to try a recipe out
        teacher: str = UNTRAINED
        features: Count = 768  # of the teacher
        queue: Count = 8192  # features of earlier images, of all processes together
        temperature: Positive = 0.07
        local: float = 1.0  # weight of the patches' part; 0: without
        cache: str | None = None  # a folder for the teacher's features, computed once for each view that is drawn

        def __post_init__(self) -> None:
            if self.view.count != 1:
                raise ValueError(f"view: distillation compares one view, count is {self.view.count}")
            if self.temperature <= 0 or self.local < 0:
                given = f"{self.temperature}, {self.local}"
                raise ValueError(f"temperature, local: must be positive, and not negative: {given}")
            if self.cache is not None and self.local and self.view.sizes:
                raise ValueError("cache: maps of views whose size changes have no one size; set local=0, or one size")
            if self.cache is not None and self.teacher == UNTRAINED:
                raise ValueError("cache: an untrained teacher's features are worth no place; give a teacher")

        def smoke(self) -> Distill.Config:
            tiny = {"view": tiny_view(self.view), "backbone": tiny_backbone(self.backbone)}
            return replace(self, **tiny, teacher=UNTRAINED, queue=16, cache=None)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        self.teacher: Teacher | None = None
        self.cached: CachedTargets | None = None
        width = config.features
        if config.teacher == UNTRAINED:
            with torch.random.fork_rng(devices=()):  # the same one whatever the run's seed, and in a resumed run
                torch.manual_seed(0)
                self.teacher = Teacher(build_backbone(config.backbone, config.view.size), config.view, config.view)
            width = self.backbone.features
        self.head = nn.Linear(self.backbone.features, width)
        self.local_head = nn.Linear(self.backbone.features, width) if config.local else None
        self.queue = Queue(config.queue, width)
        self._seen: list[Tensor] = []  # teacher's features since the last optimizer step

    @property
    def wants(self) -> str | None:
        return None if self.config.teacher == UNTRAINED else self.config.teacher

    def take_teacher(self, module: nn.Module, view: ViewSpec, what: str) -> None:
        """See `Algorithm`. Raises `UserError` where its features are others than `features`, or where it has no map of
        patches and the local part wants one."""
        self.teacher = Teacher(module, self.config.view, view)
        blank = torch.zeros(1, self.config.view.channels, self.config.view.size, self.config.view.size)
        with torch.no_grad():
            pooled, patches = self.teacher(blank, bool(self.config.local))
        if pooled.shape[1] != self.config.features:
            raise UserError(
                f"algorithm.features: {self.config.teacher} gives {pooled.shape[1]} features; set "
                f"algorithm.features={pooled.shape[1]}"
            )
        if self.config.cache is not None:
            shapes = [tuple(x.shape[1:]) for x in (pooled, patches) if x is not None]
            self.cached = CachedTargets(self.config.cache, f"{what} {self.config.view}", shapes)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone

    def prepare(self, samples: int) -> None:
        if self.config.teacher == UNTRAINED:
            notice("algorithm.teacher: untrained, a random encoder to try a recipe out; give the one to learn from")

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        said, said_map = self.targets(images, batch, progress)
        pooled, patches = features_and_map(self.backbone, images, bool(self.config.local))
        said, own = F.normalize(said, dim=1), F.normalize(self.head(pooled).float(), dim=1)
        others = torch.cat([gather_with_gradient(said).flatten(0, 1), self.queue.rows])
        self._seen.append(said)
        error = divergence(said @ others.T, own @ others.T, self.config.temperature)
        metrics = {"global": error.detach().mean()}
        if self.config.local:
            mine = self.local_head(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).float()
            mine = F.interpolate(mine, said_map.shape[-2:], mode="bilinear", align_corners=False)
            theirs, mine = (F.normalize(x.flatten(2).transpose(1, 2), dim=2) for x in (said_map, mine))
            local = divergence(theirs @ theirs.mT, mine @ mine.mT, self.config.temperature).mean(1)
            metrics["local"] = local.detach().mean()
            error = error + self.config.local * local
        return StepOutput(
            loss=error.mean(),
            metrics=metrics,
            embedding=pooled.detach(),
            per_sample=error.detach,
        )

    @torch.no_grad()
    def targets(self, images: Tensor, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor | None]:
        """The teacher's features (B, features) and map (B, features, rows, columns) in float32, out of the cache where
        one is kept: those of the same sample in the same epoch of the same seed."""
        if self.teacher is None:
            raise UserError(f"algorithm.teacher: {self.config.teacher} has not been handed over by `take_teacher`")

        def compute() -> list[Tensor]:  # contiguous, as from a cache: sums have the same order then
            found = self.teacher(images, bool(self.config.local))
            return [x.contiguous() for x in found if x is not None]

        if self.cached is None:
            found = compute()
        else:
            epochs = torch.full_like(batch.ids, batch.epoch) if batch.passes is None else batch.passes
            found = self.cached.targets(progress.seed, epochs, batch.ids, images.device, compute)
        return found[0], found[1] if self.config.local else None

    def after_step(self, progress: Progress) -> None:
        self.queue.enqueue(torch.cat(self._seen))
        self._seen.clear()


class Teacher(Frozen):
    """A frozen encoder that is shown another view's pixels: at its own normalisation and size."""

    def __init__(self, module: nn.Module, shown: ViewSpec, wanted: ViewSpec) -> None:
        super().__init__()
        self.module, self.size = module, wanted.size if wanted.size != shown.size else None
        mean, std, own_mean, own_std = (
            torch.tensor(x).view(-1, 1, 1) for x in (shown.mean, shown.std, wanted.mean, wanted.std)
        )
        same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self.register_buffer("factor", None if same else std / own_std)
        self.register_buffer("offset", None if same else (mean - own_mean) / own_std)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, with_map: bool) -> tuple[Tensor, Tensor | None]:
        """(B, features) and (B, features, rows, columns), in float32."""
        if self.factor is not None:
            images = images * self.factor + self.offset
        if self.size is not None:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        pooled, patches = features_and_map(self.module, images, with_map)
        return pooled.float(), None if patches is None else patches.float()


def features_and_map(encoder: nn.Module, images: Tensor, with_map: bool) -> tuple[Tensor, Tensor | None]:
    """What an encoder gives for images, (B, D), and its last map (B, D, rows, columns), in one pass where it can.

    Raises `UserError` for one without maps.
    """
    if not with_map:
        return encoder(images), None
    if isinstance(encoder, ViT):
        tokens = encoder.tokens(images)
        return encoder.pooled(tokens), tokens[:, 1:].transpose(1, 2).unflatten(2, encoder.grid_of(images))
    if isinstance(encoder, ResNet):
        last = encoder.stages(images)[-1]
        return last.mean((2, 3)), last
    if not hasattr(encoder, "feature_maps"):
        raise UserError(f"algorithm.local: {type(encoder).__name__} gives no map of patches; set algorithm.local=0")
    return encoder(images), encoder.feature_maps(images)[-1]


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student / temperature)) over the last dimension."""
    log_t, log_s = (x.div(temperature).log_softmax(-1) for x in (teacher, student))
    return (log_t.exp() * (log_t - log_s)).sum(-1)
