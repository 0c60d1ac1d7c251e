"""Vision Transformer with fixed sin-cos positions, and a forward over visible tokens only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

_SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}  # width, depth, heads


def sincos_positions(width: int, rows: int, columns: int) -> torch.Tensor:
    """(rows * columns, width) float32 in raster order: sines and cosines of the column, then of the row.

    Frequencies 10000^(-k / (width / 4)); coordinates are grid indices (MAE, arXiv 2111.06377, the authors' layout).
    """
    if width % 4:
        raise ValueError(f"width: sin-cos positions need a multiple of 4, not {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None].double() * omega for axis in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). (B, N, width) -> the same."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def init_transformer(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, as in MAE."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class ViT(nn.Module):
    """Vision Transformer (arXiv 2010.11929). `forward`: images (B, 3, H, W) -> (B, features)."""

    @dataclass(frozen=True)
    class Config:
        name: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_tiny"
        patch_size: int = 16
        width: int | None = None  # each of these replaces the named size's own figure
        depth: int | None = None
        heads: int | None = None
        pool: Literal["mean", "cls"] = "mean"  # of the patch tokens after the last norm, or the class token

        @property
        def shape(self) -> tuple[int, int, int]:
            """(width, depth, heads)"""
            given = (self.width, self.depth, self.heads)
            return tuple(g or d for g, d in zip(given, _SIZES[self.name]))

        def __post_init__(self) -> None:
            width, _, heads = self.shape
            if width % heads or width % 4:
                raise ValueError(f"width: {width} must be a multiple of 4 and of heads ({heads})")

    def __init__(self, config: Config, image_size: int = 224) -> None:
        super().__init__()
        width, depth, heads = config.shape
        if image_size % config.patch_size:
            raise ValueError(f"patch_size: {config.patch_size} does not divide the image size {image_size}")
        self.patch_size, self.pool, self.features = config.patch_size, config.pool, width
        self.grid = (image_size // config.patch_size,) * 2
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        # a buffer, so that a checkpoint carries it: implementations disagree on the order of rows and columns
        self.register_buffer("positions", sincos_positions(width, *self.grid)[None])
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_transformer(self)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(width, -1))
        nn.init.normal_(self.cls_token, std=0.02)

    def tokens(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 1 + N, width) after the last norm, class token first; N is the visible patches `keep` (B, K), or all."""
        x = self.patch_embed(images)
        positions = self._positions(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2) + positions
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table for this grid; resized (bicubic) when the images are not of the training size."""
        if tuple(grid) == self.grid:
            return self.positions
        table = self.positions.unflatten(1, self.grid).permute(0, 3, 1, 2)
        return F.interpolate(table, tuple(grid), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.tokens(images)
        return x[:, 0] if self.pool == "cls" else x[:, 1:].mean(1)
