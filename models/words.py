"""What BEiT, BEiT v2 and CAE share: hidden patches, and the words that a frozen tokenizer has for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..pipelines.spec import BlockMask, Mask
from .algorithm import Algorithm, resized_view
from .backbones.vit import ViT
from .sample_losses import word_losses
from .smoke import tiny
from .targets.frozen import RANDOM, Weights


class WordsConfig(Algorithm.Config):
    """Base of a `Config` with `view`, `target_view`, `backbone`, `hidden_patches`, `smallest_block`, `largest_block`
    and, of the tokenizer, `weights`."""

    rgb_only: ClassVar[str] = "has a tokenizer of RGB images"

    def check_words(self, stride: int) -> None:
        """Raises `ValueError` where the tokenizer, of one word in `stride` x `stride` pixels, has another grid."""
        patches, words = self.view.size / self.backbone.patch_size, self.target_view.size / stride
        if patches != words or patches % 1:
            raise ValueError(f"target_view: {words:g} x {words:g} words do not match {patches:g} x {patches:g} patches")
        if self.target_view.draws != self.view.name:
            raise ValueError(f"target_view: must show the same crop; give draws: {self.view.name}")

    @property
    def mask(self) -> BlockMask:
        side = self.view.size // self.backbone.patch_size
        block = {"min_block": self.smallest_block, "max_block": self.largest_block}
        return BlockMask(grid=(side, side), count=self.hidden_patches, **block)

    def resized(self, **sides: int) -> WordsConfig:
        """See `Algorithm.Config`; numbers of patches keep their share of the grid."""
        share = (sides.get("view", self.view.size) / self.view.size) ** 2
        views = {name: resized_view(getattr(self, name), side) for name, side in sides.items()}
        counts = {
            name: getattr(self, name) and max(1, round(getattr(self, name) * share))
            for name in ("hidden_patches", "smallest_block", "largest_block")
        }
        return replace(self, **views, **counts)

    def tiny(self, **change: object) -> WordsConfig:
        """`Config.smoke`, with `change`."""
        return tiny(self, **{"hidden_patches": 6, "smallest_block": 2, "weights": Weights(RANDOM), **change})


class MaskedWords(Algorithm):
    """Its encoder is `self.vit`."""

    no_pictures = "predicts tokens of a visual vocabulary, no pictures"
    sample_loss = "cross-entropy of the words of its hidden patches, their mean"

    @property
    def encoder(self) -> ViT:
        return self.vit


def hidden_places(mask: Mask) -> torch.Tensor:
    """(B, H) int64: the hidden patches of each sample, row by row."""
    return mask.restore.argsort(dim=1)[:, mask.keep.shape[1] :]


def rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, N, D) and (B, K) -> (B, K, D)"""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))


def word_loss(
    head: nn.Module, tokens: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """Mean cross-entropy of tokens (B, K, D) under `head` against words (B, K), and what gives each sample's (B,)."""
    logits = head(tokens).flatten(0, 1).float()
    return F.cross_entropy(logits, words.flatten()), partial(word_losses, logits, words)
