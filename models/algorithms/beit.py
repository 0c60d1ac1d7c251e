"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., arXiv 2106.08254)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, BlockMask, InputSpec, Mask, ViewSpec
from ...pipelines.views.recipes import view as named
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.transformer import Block, init_trunc_normal
from ..backbones.vit import ViT
from ..smoke import PATCH, SIZE, tiny_backbone, tiny_view
from ..targets.dalle import STRIDE, WORDS, DalleEncoder
from ..targets.frozen import RANDOM, Weights

BACKBONE = ViT.Config(
    "vit_base", positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1, pool="mean"
)


def check_words(config: Algorithm.Config, stride: int) -> None:
    """Raises `ValueError` where the tokenizer, of one word in `stride` x `stride` pixels, has another grid."""
    patches, words = config.view.size / config.backbone.patch_size, config.target_view.size / stride
    if patches != words or patches % 1:
        raise ValueError(f"target_view: {words:g} x {words:g} words do not match {patches:g} x {patches:g} patches")
    if config.target_view.draws != config.view.name:
        raise ValueError(f"target_view: must show the same crop; give draws: {config.view.name}")


class BEiT(Algorithm):
    """A mask token replaces blocks of patches; of each, the visual word is predicted that DALL-E's encoder gives it.

    Loss: cross-entropy over 8,192 words, averaged over hidden patches. The tokenizer sees the same crop with half the
    pixels, so that it gives one word a patch.
    """

    no_pictures = "predicts tokens of a visual vocabulary, no pictures"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["beit"] = "beit"
        view: ViewSpec = named("beit.image")
        target_view: ViewSpec = named("beit.target")
        backbone: ViT.Config = BACKBONE
        hidden_patches: int = 75
        smallest_block: int = 16  # patches
        largest_block: int | None = None
        weights: Weights = Weights()  # of the tokenizer
        tokenizer_width: int = 256

        def __post_init__(self) -> None:
            check_words(self, STRIDE)

        @property
        def mask(self) -> BlockMask:
            side = self.view.size // self.backbone.patch_size
            block = {"min_block": self.smallest_block, "max_block": self.largest_block}
            return BlockMask(grid=(side, side), count=self.hidden_patches, **block)

        def smoke(self) -> BEiT.Config:
            return replace(
                self,
                view=tiny_view(self.view),
                target_view=tiny_view(self.target_view, STRIDE * SIZE // PATCH),
                backbone=tiny_backbone(self.backbone),
                hidden_patches=6,
                smallest_block=2,
                largest_block=None,
                weights=Weights(RANDOM),
                tokenizer_width=8,
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config.backbone, config.view.size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.vit.features))
        self.head = nn.Linear(self.vit.features, WORDS)
        init_beit(self)
        rescale(self.vit.blocks, first=1)
        self.tokenizer = DalleEncoder(config.weights, config.tokenizer_width)

    @property
    def encoder(self) -> ViT:
        return self.vit

    def inputs(self) -> InputSpec:
        return InputSpec(views=(self.config.view, self.config.target_view), mask=self.config.mask)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, targets = (batch.views[spec.name][0] for spec in self.inputs().views)
        tokens = self.vit.tokens(images, hidden=batch.mask.hidden, mask_token=self.mask_token)[:, 1:]
        places = hidden_places(batch.mask)
        words = self.tokenizer.words(targets).gather(1, places)
        return StepOutput(loss=word_loss(self.head, rows(tokens, places), words), embedding=tokens.mean(1).detach())


def hidden_places(mask: Mask) -> torch.Tensor:
    """(B, H) int64: the hidden patches of each sample, row by row."""
    return mask.restore.argsort(dim=1)[:, mask.keep.shape[1] :]


def rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, N, D) and (B, K) -> (B, K, D)"""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))


def word_loss(head: nn.Module, tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of tokens (B, K, D) under `head` against words (B, K)."""
    return F.cross_entropy(head(tokens).flatten(0, 1).float(), words.flatten())


def init_beit(module: nn.Module) -> None:
    """Linear layers, convolutions and tokens ~ N(0, 0.02)."""
    init_trunc_normal(module)
    for name, parameter in module.named_parameters():
        if name.endswith(("mask_token", "cls_token")):
            nn.init.trunc_normal_(parameter, std=0.02)


@torch.no_grad()
def rescale(blocks: nn.ModuleList, first: int) -> None:
    """Divides what a block adds to the stream by sqrt(2 i); the first of `blocks` has the number i = `first`."""
    block: Block
    for number, block in enumerate(blocks, start=first):
        block.proj.weight.div_((2 * number) ** 0.5)
        block.fc2.weight.div_((2 * number) ** 0.5)
