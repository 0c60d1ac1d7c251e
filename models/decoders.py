"""What turns visible tokens back into patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..kernels.token_mix import separate, unmix
from ..kernels.token_select import token_select
from ..schema.bounds import Count
from .backbones.transformer import Block, init_transformer, positions_of, sincos_positions


class MAEDecoder(nn.Module):
    """Visible tokens + mask tokens -> one prediction per patch (MAE, arXiv 2111.06377, section 3).

    (B, 1 + K, features) and restore (B, L) -> (B, L, outputs); (B, K, features) without `class_token`.
    """

    @dataclass(frozen=True)
    class Config:
        width: Count = 512
        depth: Count = 8
        heads: Count = 16

        def __post_init__(self) -> None:
            if self.width % self.heads or self.width % 4:
                raise ValueError(f"width: {self.width} must be a multiple of 4 and of heads ({self.heads})")

    def __init__(
        self, config: Config, features: int, grid: tuple[int, int], outputs: int, *, class_token: bool = True
    ) -> None:
        super().__init__()
        self.leading = int(class_token)  # tokens in front that stand for no patch
        self.embed = nn.Linear(features, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.grid = grid
        self.register_buffer("positions", sincos_positions(config.width, *grid)[None])
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predict = nn.Linear(config.width, outputs)
        init_transformer(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        positions = positions_of(self.positions, self.grid, restore.shape[1])[0]
        x = token_select(self.embed(tokens), self.mask_token[0, 0], positions, restore, prefix=self.leading)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x)[:, self.leading :])


class MixMIMDecoder(nn.Module):
    """Both images of each mixed one -> one prediction per patch (MixMIM, arXiv 2205.13137, section 3.2).

    (B, L, features) and hidden (1 or B, L) bool -> (B, L, outputs). Where `hidden`, tokens are the partner's: two
    streams, each image's own tokens with mask tokens between, go through the decoder; of each patch the result is taken
    from the stream in which it was hidden.
    """

    def __init__(self, config: MAEDecoder.Config, features: int, grid: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.grid = grid
        self.register_buffer("positions", sincos_positions(config.width, *grid)[None])
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predict = nn.Linear(config.width, outputs)
        init_transformer(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        positions = positions_of(self.positions, self.grid, hidden.shape[1])[0]
        x = separate(self.embed(tokens), self.mask_token[0, 0], hidden, positions)
        for block in self.blocks:
            x = block(x)
        x = self.predict(self.norm(x))
        if len(hidden) == 1:
            return unmix(x, hidden)
        own, of_partner = x.chunk(2)
        return torch.where(hidden[:, :, None], own, of_partner.flip(0))
