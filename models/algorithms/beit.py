"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., arXiv 2106.08254)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view as named
from ...schema.bounds import Count
from ..algorithm import Progress, StepOutput
from ..backbones.transformer import Block, init_trunc_normal
from ..backbones.vit import ViT
from ..smoke import PATCH, SIZE, tiny_view
from ..targets.dalle import STRIDE, WORDS, DalleEncoder
from ..targets.frozen import Weights
from ..words import MaskedWords, WordsConfig, hidden_places, rows, word_loss

BACKBONE = ViT.Config(
    "vit_base", positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1, pool="mean"
)


class BEiT(MaskedWords):
    """A mask token replaces blocks of patches; of each, the visual word is predicted that DALL-E's encoder gives it.

    Loss: cross-entropy over 8,192 words, averaged over hidden patches. The tokenizer sees the same crop with half the
    pixels, so that it gives one word a patch.
    """

    @dataclass(frozen=True)
    class Config(WordsConfig):
        name: Literal["beit"] = "beit"
        view: ViewSpec = named("beit.image")
        target_view: ViewSpec = named("beit.target")
        backbone: ViT.Config = BACKBONE
        hidden_patches: Count = 75
        smallest_block: Count = 16  # patches
        largest_block: Count | None = None
        weights: Weights = Weights()  # of the tokenizer
        tokenizer_width: Count = 256

        def __post_init__(self) -> None:
            self.check_words(STRIDE)

        def smoke(self) -> BEiT.Config:
            return self.tiny(
                target_view=tiny_view(self.target_view, STRIDE * SIZE // PATCH),
                largest_block=None,
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

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, targets = (batch.views[spec.name][0] for spec in self.inputs().views)
        tokens = self.vit.tokens(images, hidden=batch.mask.hidden, mask_token=self.mask_token)[:, 1:]
        places = hidden_places(batch.mask)
        words = self.tokenizer.words(targets).gather(1, places)
        loss, per_sample = word_loss(self.head, rows(tokens, places), words)
        return StepOutput(loss=loss, embedding=tokens.mean(1).detach(), patches=tokens.detach(), per_sample=per_sample)


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
