"""A classifier on a pre-trained encoder: fine-tuning, semi-supervised training, linear probing, or from scratch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.mixing import Mixing, draw_mix, mix
from ...pipelines.views.recipes import view
from ...schema.bounds import Count, NotNegative
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones import AnyBackboneConfig, build_backbone
from ..backbones.vit import ViT
from ..distributed import rank, shared_count
from ..smoke import tiny_backbone, tiny_view
from ..teacher import Teacher
from ..weights import load_weights


class Classifier(Algorithm):
    """Cross entropy of a linear layer on the encoder's features, with labels that mixup and CutMix may have softened.

    It learns from a labelled source: `Batch.labels`, of which -1, no label, neither teaches nor counts. A frozen
    encoder runs in evaluation mode, without gradient.
    """

    sample_loss = "cross-entropy of its label, which mixing may have softened"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["classifier"] = "classifier"
        view: ViewSpec = view("finetune_mae")
        backbone: AnyBackboneConfig = ViT.Config("vit_base")
        classes: Count = 1000
        weights: str | None = None  # encoder.safetensors of a run; null: from scratch
        # parameters of the encoder, by regular expressions searched in their names, that start anew all the same
        fresh: tuple[str, ...] = ()
        frozen: bool = False  # linear probing
        head_norm: bool = False  # batch normalisation without affine before the linear layer (MAE's probe)
        head_std: NotNegative = 0.01  # of the linear layer's truncated normal start
        mixing: Mixing = Mixing()
        ema: float | None = None  # of all weights, what is evaluated: 0.99996 averages over some 25,000 steps

        def __post_init__(self) -> None:
            if self.view.count != 1 or self.view.parts is not None:
                raise ValueError(f"view: a classifier sees one view, count is {self.view.count}")
            if self.classes < 2:
                raise ValueError(f"classes: needs at least 2, not {self.classes}")
            if self.ema is not None and not 0 < self.ema < 1:
                raise ValueError(f"ema: lies in (0, 1), not {self.ema}")

        def smoke(self) -> Classifier.Config:
            return replace(
                self, view=tiny_view(self.view), backbone=tiny_backbone(self.backbone), weights=None, fresh=()
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.view.size)
        linear = nn.Linear(self.backbone.features, config.classes)
        nn.init.trunc_normal_(linear.weight, std=config.head_std)
        nn.init.zeros_(linear.bias)
        norm = nn.BatchNorm1d(self.backbone.features, affine=False, eps=1e-6) if config.head_norm else nn.Identity()
        self.head = nn.Sequential(norm, linear)
        if config.frozen:
            self.backbone.requires_grad_(False)
        self.average = None if config.ema is None else Teacher(backbone=self.backbone, head=self.head)

    def prepare(self, samples: int) -> None:
        """The start of a run: `weights` into the encoder."""
        if self.config.weights is None:
            return
        load_weights(self.backbone, self.config.weights, self.config.fresh)
        if self.average is not None:
            self.average.update(self, momentum=0.0)

    @property
    def encoder(self) -> nn.Module:
        return self.backbone if self.average is None else self.average.backbone

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.config.frozen:
            self.backbone.eval()
        return self

    @property
    def scorer(self) -> nn.Module:
        """Images (B, 3, S, S) -> scores (B, classes), by the averaged weights if there are any."""
        model = self if self.average is None else self.average
        return nn.Sequential(model.backbone, model.head)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        config, images = self.config, batch.views[self.config.view.name][0]
        if batch.labels is None:
            raise UserError("data.train: has no labels to learn from; give a folder per class")
        # the loop seeds every step, so what is drawn from there on is a function of (seed, step, rank)
        drawn = draw_mix(config.mixing, torch.initial_seed(), progress.step, rank(), len(images), images.shape[-1])
        images, soft = mix(images, batch.labels, config.classes, config.mixing, drawn)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.frozen):
            features = self.backbone(images)
        scores, known = self.head(features).float(), batch.labels >= 0
        top1 = (scores.detach().argmax(1) == batch.labels).sum() / known.sum().clamp(min=1)
        losses = F.cross_entropy(scores, soft, reduction="none") * known
        return StepOutput(
            losses.sum() / shared_count(known.sum()),
            {"top1": top1},
            features.detach(),
            per_sample=lambda: torch.where(known, losses.detach(), float("nan")),
        )

    def after_step(self, progress: Progress) -> None:
        if self.average is not None:
            self.average.update(self, self.config.ema)
            with torch.no_grad():  # running statistics, which nobody else updates in the copy, belong to the weights
                for own, other in zip(self.average.buffers(), [*self.backbone.buffers(), *self.head.buffers()]):
                    own.copy_(other)
