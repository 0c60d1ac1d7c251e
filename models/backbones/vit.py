"""Vision Transformer: those of MAE, BEiT, DeiT III, MoCo v3, CLIP, and DINO to DINOv3 are configurations of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.token_select import visible_patches
from ...schema.bounds import Chance, Count, Natural, NotNegative, Positive
from .transformer import (
    MLP,
    Block,
    QKVBias,
    RelativeBias,
    Subset,
    add_positions,
    drop_rates,
    init_transformer,
    init_trunc_normal,
    resize_positions,
    rotary_table,
    whole_patches,
)

_SIZES = {  # width, depth, heads, width of the hidden layer
    "vit_tiny": (192, 12, 3, 768),
    "vit_small": (384, 12, 6, 1536),
    "vit_medium": (512, 12, 8, 2048),
    "vit_base": (768, 12, 12, 3072),
    "vit_large": (1024, 24, 16, 4096),
    "vit_huge": (1280, 32, 16, 5120),
    "vit_giant": (1408, 40, 16, 6144),
}


class ViT(nn.Module):
    """Vision Transformer (arXiv 2010.11929). `forward`: images (B, 3, H, W) -> (B, features).

    Images of another size than the training size work: position tables and relative biases are resized (bicubic), and
    what patches do not divide is filled up with zeros. How tables are resized differs between code bases: `antialias`
    and `resize_offset` (see `resize_positions`).
    """

    @dataclass(frozen=True)
    class Config:
        name: Literal["vit_tiny", "vit_small", "vit_medium", "vit_base", "vit_large", "vit_huge", "vit_giant"] = (
            "vit_tiny"
        )
        patch_size: Count = 16
        width: Count | None = None  # each of these replaces the named size's own figure
        depth: Count | None = None
        heads: Count | None = None
        hidden: Count | None = None
        pool: Literal["mean", "cls"] = "mean"  # of the patch tokens, or the class token
        norm: Literal["tokens", "pooled"] = "tokens"  # where the last norm stands: before pooling, or after
        positions: Literal["sincos", "learned", "rotary", "none"] = "sincos"  # of the patches; other tokens have none
        antialias: bool = False  # a table of positions is resized as by timm, and by DINOv2 with registers
        resize_offset: NotNegative = 0.0  # or as by DINO and DINOv2 without registers: 0.1
        class_token: bool = True  # without: the mean of the patch tokens stands in its place in what is returned
        registers: Natural = 0  # tokens beside the class token that only blocks see (arXiv 2309.16588)
        relative_bias: Literal["shared", "block"] | None = None  # one table for all blocks, or one for each
        qkv_bias: QKVBias = "all"
        layer_scale: NotNegative | None = None  # initial value of the branches' factors (DeiT III, BEiT)
        mlp: MLP = "gelu"
        pre_norm: bool = False  # a norm before the blocks, and no bias of the patch projection (CLIP)
        norm_eps: Positive = 1e-6
        drop_path: Chance = 0.0  # of the last block; linear from 0 at the first
        # linear; uniform: the same in all blocks; subsets: so, and branches are computed for the samples that keep them
        drop_path_form: Literal["linear", "uniform", "subsets"] = "linear"
        # xavier: MAE's; dinov2, dinov3: N(0, 0.02) and torch's own for patches, tokens N(0, 1e-6) or N(0, 0.02)
        init: Literal["xavier", "dinov2", "dinov3"] = "xavier"
        freeze_patch_embed: bool = False  # the random patch projection stays as it is (MoCo v3)
        in_channels: Count = 3  # of the images

        @property
        def shape(self) -> tuple[int, int, int]:
            """(width, depth, heads)"""
            given = (self.width, self.depth, self.heads)
            return tuple(g or d for g, d in zip(given, _SIZES[self.name]))

        @property
        def hidden_width(self) -> int:
            plain = 4 * self.width if self.width else _SIZES[self.name][3]
            # two thirds, in eights: a gated MLP has three layers for a plain one's two
            return self.hidden or ((2 * plain // 3 + 7) // 8 * 8 if self.mlp == "swiglu" else plain)

        def __post_init__(self) -> None:
            width, _, heads = self.shape
            if width % heads or width % 4:
                raise ValueError(f"width: {width} must be a multiple of 4 and of heads ({heads})")
            if self.positions == "rotary" and width // heads % 4:
                raise ValueError(f"positions: rotary ones need heads of a multiple of 4 channels, not {width // heads}")
            if not 0 <= self.resize_offset < 1:
                raise ValueError(f"resize_offset: lies in [0, 1), not {self.resize_offset}")
            if self.relative_bias is not None and not self.class_token:
                raise ValueError("class_token: relative biases have rows for it")
            if self.relative_bias is not None and (self.registers or self.positions == "rotary"):
                raise ValueError("relative_bias: goes with neither registers nor rotary positions")

    def __init__(self, config: Config, image_size: int = 224) -> None:
        super().__init__()
        width, depth, heads = config.shape
        if image_size % config.patch_size:
            raise ValueError(f"patch_size: {config.patch_size} does not divide the image size {image_size}")
        self.patch_size, self.pool, self.norm_at, self.features = config.patch_size, config.pool, config.norm, width
        self.grid = (image_size // config.patch_size,) * 2
        self.resizing = {"antialias": config.antialias, "offset": config.resize_offset}
        projection = config.in_channels, width, config.patch_size, config.patch_size
        self.patch_embed = nn.Conv2d(*projection, bias=not config.pre_norm)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.registers = None
        if config.registers:
            self.registers = nn.Parameter(torch.empty(1, config.registers, width))
            nn.init.normal_(self.registers, std=0.02)
        add_positions(self, config.positions, width, self.grid)
        rotary = rotary_table(width // heads, *self.grid) if config.positions == "rotary" else None
        self.register_buffer("rotary", rotary, persistent=False)
        self.rotary_dtype = torch.float32  # in which tables are computed
        self.pre_norm = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else None
        bias = {"heads": heads, "class_token": True}
        self.relative_bias = RelativeBias(self.grid, **bias) if config.relative_bias == "shared" else None
        self.block_biases = None
        if config.relative_bias == "block":
            self.block_biases = nn.ModuleList(RelativeBias(self.grid, **bias, std=0.02) for _ in range(depth))
        options = {"qkv_bias": config.qkv_bias, "layer_scale": config.layer_scale}
        options |= {"mlp": config.mlp, "eps": config.norm_eps}
        options["drop_subsets"] = config.drop_path_form == "subsets"
        linear = config.drop_path_form == "linear"
        rates = drop_rates(config.drop_path, depth) if linear else [config.drop_path] * depth
        self.blocks = nn.ModuleList(
            Block(width, heads, config.hidden_width, drop_path=rate, **options) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        if config.init == "xavier":
            init_transformer(self)
            nn.init.xavier_uniform_(self.patch_embed.weight.view(width, -1))
            if self.cls_token is not None:
                nn.init.normal_(self.cls_token, std=0.02)
        else:
            init_trunc_normal(self.blocks)
            for tokens in (self.cls_token, self.registers):
                if tokens is not None:
                    nn.init.normal_(tokens, std=1e-6 if config.init == "dinov2" else 0.02)
        if config.freeze_patch_embed:
            self.patch_embed.requires_grad_(False)

    def embed(
        self, images: torch.Tensor, hidden: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Patch tokens (B, L, width) with their positions, and the grid (rows, columns).

        Where `hidden` (B, L) is true, `mask_token` (1, 1, width) stands in for the patch (BEiT, MaskFeat, SimMIM).
        """
        x = self.patch_embed(whole_patches(images, self.patch_size))
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        if hidden is not None:
            x = torch.where(hidden[:, :, None], mask_token.to(x.dtype), x)
        if self.positions is not None:
            x = x + resize_positions(self.positions, self.grid, grid, **self.resizing)
        return x, grid

    def embed_visible(self, images: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Tokens (B, K, width) of the patches `keep` (B, K) with their positions, and the grid; no others are made."""
        patches = visible_patches(images, keep, self.patch_size).flatten(2)
        x = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        grid = tuple(side // self.patch_size for side in images.shape[-2:])
        if self.positions is not None:
            x = x + resize_positions(self.positions, self.grid, grid, **self.resizing)[0][keep]
        return x, grid

    def outputs(
        self,
        images: torch.Tensor,
        blocks: tuple[int, ...],
        keep: torch.Tensor | None = None,
        *,
        hidden: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        rotary_scales: torch.Tensor | None = None,
        subsets: list[tuple[Subset, Subset]] | None = None,
    ) -> list[torch.Tensor]:
        """(B, 1 + N, width) after each of `blocks` (0-based, ascending), class token first, not normalised.

        N is the visible patches `keep` (B, K), of which none is hidden, or all of them; registers are left out. See
        `embed` for `hidden` and `mask_token`. `rotary_scales` (depth,): what each block multiplies the coordinates of
        rotary positions by. `subsets`: of each block, those of `Block`.
        """
        if keep is None:
            x, grid = self.embed(images, hidden, mask_token)
        elif self.relative_bias is not None or self.block_biases is not None:
            raise ValueError("keep: an encoder with relative biases sees all patches; hide them with a mask token")
        else:
            x, grid = self.embed_visible(images, keep)
        first = [token for token in (self.cls_token, self.registers) if token is not None]
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in first), x], dim=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        rotary = None if self.rotary is None else self._rotary(grid, keep)
        shared = None if self.relative_bias is None else self.relative_bias(grid)
        found = []
        for i, block in enumerate(self.blocks[: blocks[-1] + 1]):
            bias = shared if self.block_biases is None else self.block_biases[i](grid)
            if rotary_scales is not None:
                rotary = self._rotary_table(grid, rotary_scales[i])
            x = block(x, bias, rotary) if subsets is None else block(x, bias, rotary, subsets[i])
            if i in blocks:
                found.append(self._without_registers(x))
        return found

    def _without_registers(self, x: torch.Tensor) -> torch.Tensor:
        """The class token, or what stands in its place, and the patches."""
        if self.registers is None and self.cls_token is not None:
            return x
        count = 0 if self.registers is None else self.registers.shape[1]
        if self.cls_token is not None:
            return torch.cat([x[:, :1], x[:, 1 + count :]], 1)
        return torch.cat([x[:, count:].mean(1, keepdim=True), x[:, count:]], 1)

    def _rotary(self, grid: tuple[int, int], keep: torch.Tensor | None) -> torch.Tensor:
        """The `rotary_table` of all patches, or of those that are kept: (2, B, 1, K, width of a head)."""
        table = self.rotary
        if grid != self.grid or self.rotary_dtype != torch.float32:
            table = self._rotary_table(grid)
        return table if keep is None else table[:, keep][:, :, None]

    def _rotary_table(self, grid: tuple[int, int], scale: torch.Tensor | float = 1.0) -> torch.Tensor:
        where = {"device": self.rotary.device, "dtype": self.rotary_dtype}
        return rotary_table(self.rotary.shape[-1], *grid, scale, **where)

    def tokens(self, images: torch.Tensor, keep: torch.Tensor | None = None, **options) -> torch.Tensor:
        """(B, 1 + N, width) after the last norm (with `norm` "pooled": before it); see `outputs`."""
        (x,) = self.outputs(images, (len(self.blocks) - 1,), keep, **options)
        return self.norm(x) if self.norm_at == "tokens" else x

    def feature_maps(self, images: torch.Tensor, blocks: tuple[int, ...] | None = None) -> list[torch.Tensor]:
        """(B, width, rows, columns) after each of `blocks`; by default after the last one and its norm.

        Rows and columns are rounded up: see `whole_patches`.
        """
        if blocks is None:
            found = [self.tokens(images)]
        else:
            found = self.outputs(images, blocks)
        return [x[:, 1:].transpose(1, 2).unflatten(2, self.grid_of(images)) for x in found]

    def grid_of(self, images: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images (B, 3, H, W), rounded up."""
        return tuple(-(-side // self.patch_size) for side in images.shape[-2:])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pooled(self.tokens(images))

    def pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        """What `tokens` (B, 1 + N, width) of all patches make as one vector an image, (B, width)."""
        x = tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)
        return self.norm(x) if self.norm_at == "pooled" else x

    @property
    def num_layers(self) -> int:
        """The embedding, the blocks, and what comes after them; see `layer_of`."""
        return len(self.blocks) + 2

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies, for rates that decay by layer: 0 the embedding, 1.. the blocks.

        A bias that all blocks share belongs to none of them and has the last number, as with BEiT's authors.
        """
        part, _, rest = parameter.partition(".")
        if part in ("blocks", "block_biases"):
            return int(rest.split(".")[0]) + 1
        embedding = ("patch_embed", "cls_token", "registers", "positions", "pre_norm")
        return 0 if part in embedding else self.num_layers - 1
