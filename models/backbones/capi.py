"""CAPI's transformer (arXiv 2502.08769): no biases, root-mean-square norms, every token turned by its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...schema.bounds import Chance, Count, Natural
from .transformer import drop_path, rotate, whole_patches


class CAPIBlock(nn.Module):
    """x + attention, then x + MLP; no biases, root-mean-square norms. With a `context`, (B, K, width), that is what is
    attended to instead of the tokens (B, N, width) themselves."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.q, self.proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, places: Tensor, context: Tensor | None = None, of_context: Tensor | None = None):
        """places, of_context: `rotary` tables of the tokens and of the context."""
        normed = self.norm1(x)
        k, v = self.kv(normed if context is None else context).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(normed), k, v))
        q, k = rotate(q, places), rotate(k, places if context is None else of_context)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + drop_path(self.proj(attended), self.drop_path, self.training)
        return x + drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))), self.drop_path, self.training)


def rotary(places: Tensor, width: int, form: str) -> Tensor:
    """(2, B, 1, N, width): cosines and sines for tokens at places (B, N, 2), row and column in [0, 1].

    Frequencies fall from 7 to 7e-4 turns of the circle. `rotate` pairs channel i with i + width / 2. In the form
    "rotation" both have one angle. As "released" the first half of the channels has the angles of the row and the
    second those of the column, so that a pair is turned by two angles: no rotation but on the diagonal, yet what the
    authors' weights were trained with.
    """
    frequencies = 2 * math.pi * 7 * 1e4 ** -torch.linspace(0, 1, width // 4, device=places.device)
    row, column = (places[..., axis, None] * frequencies for axis in (0, 1))
    order = (row, row, column, column) if form == "released" else (row, column, row, column)
    angles = torch.cat(order, dim=-1)[:, None]
    return torch.stack([angles.cos(), angles.sin()])


def on_the_border(count: int, device: torch.device) -> Tensor:
    """(count, 2): places going round the unit square, from its first corner."""
    turn = torch.arange(count, device=device) * (4 / count)
    side, along = turn.floor(), turn - turn.floor()
    row = torch.where(side == 0, 0, torch.where(side == 1, along, torch.where(side == 2, 1, 1 - along)))
    column = torch.where(side == 0, along, torch.where(side == 1, 1, torch.where(side == 2, 1 - along, 0)))
    return torch.stack([row, column], dim=-1)


class CAPIEncoder(nn.Module):
    """A transformer of `CAPIBlock`s with registers on the border of what it sees. (B, 3, H, W) -> (B, features), the
    mean of the patches."""

    @dataclass(frozen=True)
    class Config:
        width: Count = 1024
        depth: Count = 24
        heads: Count = 16
        patch_size: Count = 14
        registers: Natural = 16
        drop_path: Chance = 0.2
        rotary: Literal["rotation", "released"] = "rotation"
        in_channels: Count = 3  # of the images

        def __post_init__(self) -> None:
            if self.width % self.heads or self.width // self.heads % 4:
                raise ValueError(f"width: {self.width} needs {self.heads} heads of a multiple of 4 channels")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.features, self.patch_size = config, config.width, config.patch_size
        self.patch_embed = nn.Conv2d(config.in_channels, config.width, config.patch_size, config.patch_size)
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
        blocks = (CAPIBlock(config.width, config.heads, config.drop_path) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.width, eps=1e-5, elementwise_affine=False)
        init_capi(self)
        nn.init.normal_(self.registers, std=0.02)

    def places(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(1, rows * columns, 2) in raster order, from 0 to 1 both ways."""
        sides = [torch.linspace(0, 1, side, device=device) for side in (rows, columns)]
        return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)[None]

    def table(self, places: Tensor) -> Tensor:
        """The `rotary` table of tokens at these places."""
        return rotary(places, self.config.width // self.config.heads, self.config.rotary)

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Registers and patches, all of them or those at keep (B, K): (B, R + N, width), and their places."""
        x = self.patch_embed(whole_patches(images, self.patch_size))
        places = self.places(*x.shape[-2:], x.device).expand(len(x), -1, -1)
        x = x.flatten(2).transpose(1, 2)
        if keep is not None:
            x, places = (t.gather(1, keep[:, :, None].expand(-1, -1, t.shape[-1])) for t in (x, places))
        low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)
        border = low + on_the_border(self.registers.shape[1], x.device) * (high - low)
        x, places = torch.cat([self.registers.expand(len(x), -1, -1), x], 1), torch.cat([border, places], 1)
        table = self.table(places)
        for block in self.blocks:
            x = block(x, table)
        return self.norm(x), places

    def patches(self, images: Tensor) -> Tensor:
        """(B, N, width)"""
        return self.tokens(images)[0][:, self.registers.shape[1] :]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """(B, width, rows, columns), of the last block."""
        grid = tuple(-(-side // self.patch_size) for side in images.shape[-2:])
        return [self.patches(images).transpose(1, 2).unflatten(2, grid)]

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).mean(1)


def init_capi(module: nn.Module) -> None:
    """Xavier-uniform layers, convolutions as layers of their flattened weights, zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            nn.init.zeros_(layer.bias)
