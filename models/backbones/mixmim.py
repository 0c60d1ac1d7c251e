"""The encoder of MixMIM (MixMAE): Mixed and Masked Image Modeling (Liu et al., arXiv 2205.13137).

A window transformer without shifts whose windows are large. In pre-training it sees the tokens of two images at once,
and in every block the tokens of one are hidden from those of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...kernels.token_mix import mix
from ...schema.bounds import Chance, Count
from .transformer import init_transformer, resize_positions, sincos_positions
from .windows import EPS, PatchEmbed, WindowConfig, WindowEncoder, WindowStages, enlarge, window_sizes

_SIZES = {  # width of the first stage, depths, heads
    "mixmim_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "mixmim_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "mixmim_huge": (352, (2, 2, 18, 2), (11, 22, 44, 88)),
}


class MixMIMTransformer(WindowEncoder):
    """See `WindowEncoder`."""

    @dataclass(frozen=True)
    class Config(WindowConfig):
        name: Literal["mixmim_base", "mixmim_large", "mixmim_huge"] = "mixmim_base"
        windows: tuple[Count, Count, Count, Count] = (14, 14, 14, 7)  # 16, 16, 24, 12 for images of 384 px
        width: Count | None = None  # these three replace the named size's own figures
        depths: tuple[Count, Count, Count, Count] | None = None
        heads: tuple[Count, Count, Count, Count] | None = None
        drop_path: Chance = 0.0
        in_channels: Count = 3  # of the images

        sizes = _SIZES
        multiple = 4  # for fixed positions

    def __init__(self, config: Config, image_size: int = 224) -> None:
        super().__init__()
        width, depths, heads = config.shape
        if image_size % 32:
            raise ValueError(f"size: MixMIM needs images whose side is a multiple of 32, not {image_size}")
        self.features, self.grid = 8 * width, (image_size // 4,) * 2
        self.patch_embed = PatchEmbed(width, config.in_channels)
        self.register_buffer("positions", sincos_positions(width, *self.grid)[None])
        windows = tuple(map(min, config.windows, window_sizes(image_size, image_size)))
        self.body = WindowStages(width, depths, heads, windows, shifted=False, last_drop_path=config.drop_path)
        self.norm = nn.LayerNorm(8 * width, eps=EPS)
        init_transformer(self.body)

    def maps(self, images: torch.Tensor, hidden: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The map after each stage, (B, H / 4, W / 4, width) to (B, H / 32, W / 32, 8 width), not normalised.

        hidden: (1 or B, H/32, W/32) bool. Where it is true, sample b's token is that of sample B - 1 - b.
        """
        x = self.patch_embed(images)
        grid = x.shape[1:3]
        positions = resize_positions(self.positions, self.grid, grid).view(1, *grid, -1).to(x.dtype)
        if hidden is None:
            return self.body(x + positions)
        cells = enlarge(hidden, 8).flatten(1)
        if len(hidden) == 1:
            mixed = mix(x.flatten(1, 2), cells, positions.flatten(0, 2)).view_as(x)
        else:
            mixed = torch.where(cells.view(*x.shape[:3], 1), x.flip(0), x) + positions
        return self.body(mixed, hidden.to(torch.int8))

    def tokens(self, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(B, H/32 * W/32, 8 width) after the last norm, of the mixed images; see `maps`."""
        return self.norm(self.maps(images, hidden)[-1]).flatten(1, 2)
