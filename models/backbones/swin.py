"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., arXiv 2103.14030)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...schema.bounds import Chance, Count
from .transformer import init_trunc_normal
from .windows import EPS, PatchEmbed, WindowConfig, WindowEncoder, WindowStages, window_sizes

_SIZES = {  # width of the first stage, depths, heads
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


class Swin(WindowEncoder):
    """See `WindowEncoder`."""

    @dataclass(frozen=True)
    class Config(WindowConfig):
        name: Literal["swin_tiny", "swin_small", "swin_base", "swin_large"] = "swin_base"
        window: Count = 7  # shrinks to the map of a stage where that is smaller
        # of each stage, instead; maps that are smaller are padded
        windows: tuple[Count, Count, Count, Count] | None = None
        width: Count | None = None  # these three replace the named size's own figures
        depths: tuple[Count, Count, Count, Count] | None = None
        heads: tuple[Count, Count, Count, Count] | None = None
        drop_path: Chance = 0.1
        in_channels: Count = 3  # of the images

        sizes = _SIZES

    def __init__(self, config: Config, image_size: int = 224) -> None:
        super().__init__()
        width, depths, heads = config.shape
        if image_size % 32:
            raise ValueError(f"size: Swin needs images whose side is a multiple of 32, not {image_size}")
        self.features = 8 * width
        self.patch_embed = PatchEmbed(width, config.in_channels)
        windows = window_sizes(config.windows or config.window, image_size)
        self.body = WindowStages(width, depths, heads, windows, shifted=True, last_drop_path=config.drop_path)
        self.norm = nn.LayerNorm(8 * width, eps=EPS)
        init_trunc_normal(self.body)

    def maps(
        self, images: torch.Tensor, hidden: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """The map after each stage, (B, H / 4, W / 4, width) to (B, H / 32, W / 32, 8 width), not normalised.

        Where `hidden` (B, L), L = H / 4 * W / 4, is true, `mask_token` (1, 1, width) stands in for the token (SimMIM).
        """
        x = self.patch_embed(images)
        if hidden is not None:
            x = torch.where(hidden.view(*x.shape[:3], 1), mask_token[:, None].to(x.dtype), x)
        return self.body(x)
