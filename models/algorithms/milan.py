"""MILAN: Masked Image Pretraining on Language Assisted Representation (Hou et al., arXiv 2208.06049)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, Mask, ViewSpec, WeightedMask
from ...pipelines.views.masks import weighted_mask
from ...pipelines.views.recipes import view
from ..algorithm import Progress, StepOutput
from ..backbones.transformer import init_transformer, sincos_positions
from ..decoders import MAEDecoder
from .eva import EVA


class MILAN(EVA):
    """An encoder of visible patches learns CLIP's features of all of them; CLIP's attention says which are visible.

    Loss: 2 - 2 cos(prediction, feature), averaged over all tokens, the class token and visible ones included. The
    decoder leaves visible tokens as the encoder made them ("prompting").
    """

    sample_loss = "2 - 2 cos(prediction, feature), the mean over all its tokens"

    @dataclass(frozen=True)
    class Config(EVA.Config):
        name: Literal["milan"] = "milan"
        view: ViewSpec = view("milan")

        @property
        def mask(self) -> WeightedMask:
            side = self.view.size // self.backbone.patch_size
            return WeightedMask(grid=(side, side), ratio=self.mask_ratio)

    @staticmethod
    def decoder_of(config: MAEDecoder.Config, features: int, grid: tuple[int, int], outputs: int) -> nn.Module:
        return PromptingDecoder(config, features, grid, outputs)

    def predict(self, images: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S) -> features (B, 1 + L, F), class token first, and the visible tokens (B, K, D)."""
        tokens = self.vit.tokens(images, mask.keep)
        return self.decoder(tokens, mask.restore), tokens[:, 1:]

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        features, attention = self.clip(images)
        mask = weighted_mask(attention, batch.mask.noise, self.config.mask.hidden)  # what is looked at stays visible
        prediction, tokens = self.predict(images, mask)
        distance = 2 - 2 * F.cosine_similarity(prediction.float(), features, dim=-1, eps=1e-12)
        seen = {"embedding": tokens.mean(1).detach(), "patches": tokens.detach()}
        return StepOutput(distance.mean(), **seen, per_sample=lambda: distance.detach().mean(1))


class PromptingDecoder(nn.Module):
    """(B, 1 + K, features) and restore (B, L) -> (B, 1 + L, outputs). Only hidden tokens change from block to block.

    In every block they attend to the whole sequence: themselves, normalised, among the visible tokens, which are not.
    """

    def __init__(self, config: MAEDecoder.Config, features: int, grid: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos_positions(config.width, *grid)[None])
        self.blocks = nn.ModuleList(_PromptingBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predict = nn.Linear(config.width, outputs)
        init_transformer(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        shuffled = restore.argsort(dim=1)  # raster places in the order visible, hidden
        positions = self.positions.expand(len(x), -1, -1).gather(1, _wide(shuffled, x)).to(x.dtype)
        kept = x.shape[1] - 1
        fixed = torch.cat([x[:, :1], x[:, 1:] + positions[:, :kept]], dim=1)
        hidden = self.mask_token.to(x.dtype) + positions[:, kept:]
        for block in self.blocks:
            hidden = block(hidden, fixed)
        patches = torch.cat([fixed[:, 1:], hidden], dim=1).gather(1, _wide(restore, x))
        return self.predict(self.norm(torch.cat([fixed[:, :1], patches], dim=1)))


class _PromptingBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(hidden)
        # attention does not care for the order of keys: no need to put the sequence back in raster order
        k, v = self.kv(torch.cat([fixed, normed], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(normed), k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + self.proj(attended)
        return hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden))))


def _wide(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return index[:, :, None].expand(-1, -1, x.shape[-1])
