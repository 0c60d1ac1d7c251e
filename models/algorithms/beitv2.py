"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al., arXiv 2208.06366)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view as named
from ...schema.bounds import Count, Natural
from ..algorithm import Progress, StepOutput
from ..backbones.transformer import Block, drop_rates
from ..backbones.vit import ViT
from ..smoke import tiny_backbone
from ..targets.frozen import Weights
from ..targets.vqkd import CODES, ENCODER, VQKDTokenizer
from ..words import MaskedWords, WordsConfig, hidden_places, rows, word_loss
from .beit import BACKBONE, init_beit, rescale


class BEiTv2(MaskedWords):
    """BEiT with the codes of VQ-KD, and a second prediction that has to go through the class token.

    Loss: the sum of two cross-entropies over the same hidden patches, norm and head. The second starts from the patch
    tokens of three quarters of the depth with the class token of the last block, and has two blocks of its own.
    """

    sample_loss = "sum of both cross-entropies of the words of its hidden patches, their mean"

    @dataclass(frozen=True)
    class Config(WordsConfig):
        name: Literal["beitv2"] = "beitv2"
        view: ViewSpec = named("beitv2.image")
        target_view: ViewSpec = named("beitv2.target")
        backbone: ViT.Config = replace(BACKBONE, drop_path=0.0)
        early_block: Natural = 8  # 0-based; its patch tokens go to the second prediction
        neck_depth: Natural = 2
        hidden_patches: Count = 75
        smallest_block: Count = 16  # patches
        largest_block: Count | None = 75
        tokenizer: ViT.Config = ENCODER
        weights: Weights = Weights()  # of the tokenizer

        def __post_init__(self) -> None:
            self.check_words(self.tokenizer.patch_size)
            if not 0 <= self.early_block < self.backbone.shape[1] - 1:
                raise ValueError(f"early_block: {self.early_block} is not before the last of {self.backbone.shape[1]}")

        def smoke(self) -> BEiTv2.Config:
            return self.tiny(
                backbone=replace(tiny_backbone(self.backbone), depth=3),
                early_block=1,
                largest_block=6,
                tokenizer=tiny_backbone(self.tokenizer),
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.backbone, config.view.size)
        width, depth, heads = config.backbone.shape
        rates = drop_rates(config.backbone.drop_path, depth)[config.early_block + 1 :]
        options = {"qkv_bias": config.backbone.qkv_bias, "layer_scale": config.backbone.layer_scale}
        self.neck = nn.ModuleList(
            Block(width, heads, config.backbone.hidden_width, drop_path=rates[min(i, len(rates) - 1)], **options)
            for i in range(config.neck_depth)
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.head = nn.Linear(width, CODES)
        init_beit(self)
        rescale(self.vit.blocks, first=1)
        rescale(self.neck, first=config.early_block + 2)
        self.tokenizer = VQKDTokenizer(config.weights, config.tokenizer, config.target_view.size)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, targets = (batch.views[spec.name][0] for spec in self.inputs().views)
        last = len(self.vit.blocks) - 1
        early, final = self.vit.outputs(
            images, (self.config.early_block, last), hidden=batch.mask.hidden, mask_token=self.mask_token
        )
        through_class = torch.cat([final[:, :1], early[:, 1:]], dim=1)
        bias = None if self.vit.relative_bias is None else self.vit.relative_bias(self.vit.grid_of(images))
        for block in self.neck:
            through_class = block(through_class, bias)
        places = hidden_places(batch.mask)
        words = self.tokenizer.words(targets).gather(1, places)
        (loss_final, own_final), (loss_through_class, own_through_class) = (
            word_loss(self.head, rows(self.vit.norm(x)[:, 1:], places), words) for x in (final, through_class)
        )
        return StepOutput(
            loss=loss_final + loss_through_class,
            metrics={"loss_final": loss_final.detach(), "loss_through_class": loss_through_class.detach()},
            embedding=final[:, 1:].mean(1).detach(),
            patches=final[:, 1:].detach(),
            per_sample=lambda: own_final() + own_through_class(),
        )
