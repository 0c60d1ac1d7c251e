"""HiViT: A Simpler and More Efficient Design of Hierarchical Vision Transformer (Zhang et al., arXiv 2205.14949).

Every token of 16 x 16 pixels owns a grid of 4 x 4 inner patches. The first two stages work on the inner grid alone,
with MLPs, and the main stage is a plain transformer over tokens; so tokens are independent up to there, and a masked
autoencoder can drop them right after the patch embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.token_select import visible_patches
from ...schema.bounds import Chance, Count, NotNegative
from .transformer import (
    Block,
    RelativeBias,
    add_positions,
    drop_path,
    drop_rates,
    init_trunc_normal,
    resize_positions,
    whole_patches,
)

_SIZES = {  # width of the main stage, depths of the three stages, heads
    "hivit_tiny": (384, (1, 1, 10), 6),
    "hivit_small": (384, (2, 2, 20), 6),
    "hivit_base": (512, (2, 2, 20), 8),
    "hivit_large": (768, (2, 2, 40), 12),
}
_INNER = 4  # inner patches on a token's side; two mergings make one of them


class StageTokens(NamedTuple):
    """What each stage makes of K tokens; the inner grids are in raster order."""

    inner: torch.Tensor  # (B, K, 16, features / 4)
    merged: torch.Tensor  # (B, K, 4, features / 2)
    main: torch.Tensor  # (B, K, features)


class MLPBlock(nn.Module):
    """x + mlp(norm(x)), with a hidden layer three times as wide. (..., width) -> the same."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 3 * width)
        self.fc2 = nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + drop_path(self.fc2(F.gelu(self.fc1(self.norm(x)))), self.drop_path, self.training)


class InnerMerge(nn.Module):
    """Joins squares of 2 x 2 inner patches: (B, K, s, s, C) -> (B, K, s / 2, s / 2, 2 C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=1e-6)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))


class HiViT(nn.Module):
    """`forward`: images (B, 3, H, W) -> (B, features), the mean of the tokens after a norm of its own."""

    @dataclass(frozen=True)
    class Config:
        name: Literal["hivit_tiny", "hivit_small", "hivit_base", "hivit_large"] = "hivit_base"
        patch_size: Count = 16
        width: Count | None = None  # these three replace the named size's own figures
        depths: tuple[Count, Count, Count] | None = None
        heads: Count | None = None
        positions: Literal["sincos", "learned", "none"] = "sincos"  # enter at the main stage only
        relative_bias: bool = False  # a table for each block of the main stage
        layer_scale: NotNegative | None = None
        drop_path: Chance = 0.0
        in_channels: Count = 3  # of the images

        @property
        def shape(self) -> tuple[int, tuple[int, int, int], int]:
            """(width, depths, heads)"""
            given = (self.width, self.depths, self.heads)
            return tuple(g or d for g, d in zip(given, _SIZES[self.name]))

        def __post_init__(self) -> None:
            width, _, heads = self.shape
            if width % 16 or width % heads:
                raise ValueError(f"width: {width} must be a multiple of 16 and of heads ({heads})")
            if self.patch_size % _INNER:
                raise ValueError(f"patch_size: {self.patch_size} must be a multiple of {_INNER}")

    def __init__(self, config: Config, image_size: int = 224) -> None:
        super().__init__()
        width, depths, heads = config.shape
        if image_size % config.patch_size:
            raise ValueError(f"patch_size: {config.patch_size} does not divide the image size {image_size}")
        self.patch_size, self.features = config.patch_size, width
        self.grid = (image_size // config.patch_size,) * 2
        pixels = config.patch_size // _INNER
        self.patch_embed = nn.Conv2d(config.in_channels, width // 4, pixels, pixels)
        self.patch_norm = nn.LayerNorm(width // 4, eps=1e-6)
        rates = drop_rates(config.drop_path, sum(depths) + sum(depths[:-1]))  # two MLPs a depth unit of early stages
        early = 2 * depths[0]
        self.inner_blocks = nn.ModuleList(MLPBlock(width // 4, rate) for rate in rates[:early])
        self.inner_merge = InnerMerge(width // 4)
        middle = early + 2 * depths[1]
        self.merged_blocks = nn.ModuleList(MLPBlock(width // 2, rate) for rate in rates[early:middle])
        self.merged_merge = InnerMerge(width // 2)
        add_positions(self, config.positions, width, self.grid)
        self.blocks = nn.ModuleList(
            Block(width, heads, layer_scale=config.layer_scale, drop_path=rate) for rate in rates[middle:]
        )
        self.block_biases = None
        if config.relative_bias:
            biases = (RelativeBias(self.grid, heads, class_token=False) for _ in self.blocks)
            self.block_biases = nn.ModuleList(biases)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_trunc_normal(self)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(width // 4, -1))

    def stage_tokens(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> StageTokens:
        """The outputs of the three stages for the tokens `keep` (B, K), or for all of them in raster order."""
        images = whole_patches(images, self.patch_size)
        grid = tuple(side // self.patch_size for side in images.shape[-2:])
        if keep is None:
            x = self.patch_embed(images)
            x = x.unflatten(3, (grid[1], _INNER)).unflatten(2, (grid[0], _INNER))  # (B, C, rows, 4, columns, 4)
            x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)  # (B, L, 4, 4, C)
        else:
            x = self.patch_embed(visible_patches(images, keep, self.patch_size).flatten(0, 1))  # (B K, C, 4, 4)
            x = x.unflatten(0, tuple(keep.shape)).permute(0, 1, 3, 4, 2)
        x = self.patch_norm(x)
        for block in self.inner_blocks:
            x = block(x)
        inner, x = x, self.inner_merge(x)
        for block in self.merged_blocks:
            x = block(x)
        merged, x = x, self.merged_merge(x)[:, :, 0, 0]
        if self.positions is not None:
            positions = resize_positions(self.positions, self.grid, grid)
            x = x + (positions if keep is None else _rows(positions.expand(len(x), -1, -1), keep))
        for i, block in enumerate(self.blocks):
            bias = None if self.block_biases is None else self.block_biases[i](grid)
            if bias is not None and keep is not None:  # (B, heads, K, K): each sample sees other places
                bias = bias[:, keep[:, :, None], keep[:, None, :]].transpose(0, 1)
            x = block(x, bias)
        return StageTokens(inner.flatten(2, 3), merged.flatten(2, 3), x)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps at strides 4, 8 and 16 (of a 16-pixel patch): (B, C, H / stride, W / stride) of whole patches."""
        grid = tuple(-(-side // self.patch_size) for side in images.shape[-2:])
        maps = []
        for x, side in zip(self.stage_tokens(images), (4, 2, 1)):
            x = x.reshape(len(x), *grid, side, side, -1).permute(0, 5, 1, 3, 2, 4)
            maps.append(x.reshape(len(x), -1, grid[0] * side, grid[1] * side))
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stage_tokens(images).main.mean(1))

    @property
    def num_layers(self) -> int:
        """The embedding, the blocks, every MLP of the early stages counted, and what comes after; see `layer_of`."""
        return len(self.inner_blocks) + len(self.merged_blocks) + len(self.blocks) + 2

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies, for rates that decay by layer: 0 the embedding, a merge with the block before."""
        part, _, rest = parameter.partition(".")
        early, merged = len(self.inner_blocks), len(self.merged_blocks)
        number = int(rest.split(".")[0]) if part.endswith(("blocks", "biases")) else 0
        depth = {
            "inner_blocks": number + 1,
            "inner_merge": early,
            "merged_blocks": early + number + 1,
            "merged_merge": early + merged,
            "blocks": early + merged + number + 1,
            "block_biases": early + merged + number + 1,
            "norm": self.num_layers - 1,
        }
        return depth.get(part, 0)

    def merges(self, parameter: str) -> bool:
        """Whether a parameter belongs to a merging, which methods count to the block before it or to the next."""
        return parameter.startswith(("inner_merge.", "merged_merge."))


def _rows(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[-1]))
