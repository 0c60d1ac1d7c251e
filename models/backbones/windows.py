"""What Swin and MixMIM share: four stages of blocks that attend inside windows, a merging of 2 x 2 tokens between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.segment_attention import segment_attention, segments_of
from ...kernels.window_attention import window_attention
from .transformer import drop_path, drop_rates, whole_patches

EPS = 1e-5  # of every norm; plain transformers have 1e-6


class PatchEmbed(nn.Module):
    """Images (B, channels, H, W) -> normalised tokens (B, H / 4, W / 4, width)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 4, 4)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(whole_patches(images, 4)).permute(0, 2, 3, 1))


class PatchMerge(nn.Module):
    """(B, H, W, C) -> (B, H / 2, W / 2, 2 C). The corners' order is that of the authors of Swin and of timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=EPS)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))


class WindowBlock(nn.Module):
    """Pre-norm block with attention inside windows of a map. (B, H, W, width) -> the same.

    `groups` (1 or B, H, W) int8: tokens of different groups do not see each other. A map that windows do not divide is
    padded with zeros at the bottom and right; a map of a single window is not shifted.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.drop_path = heads, window, shift, drop_path
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def segments(self, x: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor | None:
        """What `attention` needs of a map where windows are large; the same for all blocks of equal `shift`.

        None where windows are small, or where each sample has groups of its own: window_attention serves both.
        """
        if self.window**2 <= 64 or (groups is not None and len(groups) > 1):
            return None
        padded = self._padded(x[:1])
        if groups is None:
            whole = torch.zeros(1, *padded.shape[1:3], dtype=torch.int8, device=x.device)
            return segments_of(whole, window=self.window, shift=self._shift_on(padded), count=1)
        return segments_of(self._padded(groups[..., None])[..., 0], window=self.window, shift=self._shift_on(padded))

    def attention(
        self, x: torch.Tensor, groups: torch.Tensor | None = None, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        _, H, W, C = x.shape
        x = self._padded(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, C // self.heads))
        if segments is not None:
            attended = segment_attention(qkv, self.bias_table, segments, window=self.window)
        else:
            groups = None if groups is None else self._padded(groups[..., None])[..., 0]
            shift = self._shift_on(x)
            attended = window_attention(qkv, self.bias_table, groups, window=self.window, shift=shift)
        return self.proj(attended.flatten(3)[:, :H, :W])

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        down, right = -x.shape[1] % self.window, -x.shape[2] % self.window
        return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x

    def _shift_on(self, x: torch.Tensor) -> int:
        return 0 if max(x.shape[1:3]) == self.window else self.shift

    def forward(
        self, x: torch.Tensor, groups: torch.Tensor | None = None, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x + drop_path(self.attention(self.norm1(x), groups, segments), self.drop_path, self.training)
        mlp = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + drop_path(mlp, self.drop_path, self.training)


class WindowStages(nn.Module):
    """Four stages on maps of stride 4, 8, 16 and 32. (B, H, W, width) -> the map after each stage, channels last.

    `windows`: of each stage; `shifted`: every other block is shifted by half a window. `groups` (1 or B, h, w) is given
    at the last stage's stride, and each of its cells stands for 2 x 2 cells of the stage before.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[int],
        *,
        shifted: bool,
        last_drop_path: float,
    ) -> None:
        super().__init__()
        rates = iter(drop_rates(last_drop_path, sum(depths)))
        self.depths = tuple(depths)
        self.stages = nn.ModuleList()
        for stage, (depth, count, window) in enumerate(zip(depths, heads, windows, strict=True)):
            shifts = [window // 2 if shifted and block % 2 else 0 for block in range(depth)]
            blocks = [WindowBlock(width << stage, count, window, shift, next(rates)) for shift in shifts]
            self.stages.append(nn.ModuleList(blocks))
        self.merges = nn.ModuleList(PatchMerge(width << stage) for stage in range(len(depths) - 1))

    def forward(self, x: torch.Tensor, groups: torch.Tensor | None = None) -> list[torch.Tensor]:
        maps = []
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            cells = None if groups is None else enlarge(groups, 1 << (len(self.stages) - 1 - stage))
            segments = {block.shift: block for block in blocks}
            segments = {shift: block.segments(x, cells) for shift, block in segments.items()}
            for block in blocks:
                x = block(x, cells, segments[block.shift])
            maps.append(x)
        return maps

    @property
    def num_blocks(self) -> int:
        return sum(self.depths)

    def layer_of(self, parameter: str) -> int:
        """The number of the block, from 1, counted over all stages; a merging belongs to the block before it."""
        part, stage, *rest = parameter.split(".")
        if part == "merges":
            return sum(self.depths[: int(stage) + 1])
        return sum(self.depths[: int(stage)]) + int(rest[0]) + 1


def enlarge(cells: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, h, w) -> (B, h * factor, w * factor), each cell repeated."""
    return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


class WindowConfig:
    """Base of a `Config` with `name`, and `width`, `depths` and `heads`, which replace the named size's own figures."""

    sizes: ClassVar[dict[str, tuple]]  # name -> width of the first stage, depths, heads
    multiple: ClassVar[int] = 1  # of which widths are one

    @property
    def shape(self) -> tuple[int, tuple, tuple]:
        """(width, depths, heads)"""
        given = (self.width, self.depths, self.heads)
        return tuple(g or d for g, d in zip(given, self.sizes[self.name]))

    def __post_init__(self) -> None:
        width, _, heads = self.shape
        if width % self.multiple:
            raise ValueError(f"width: {width} must be a multiple of {self.multiple}")
        if any((width << stage) % count for stage, count in enumerate(heads)):
            raise ValueError(f"width: {width} times 1, 2, 4, 8 must be multiples of heads {heads}")


class WindowEncoder(nn.Module):
    """What stands around `WindowStages`: a subclass has `patch_embed`, `body`, `norm` and `maps`.

    `forward`: images (B, 3, H, W) -> (B, features), the mean of the last map's normalised tokens.
    """

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The map after each stage, (B, H / 4, W / 4, width) to (B, H / 32, W / 32, 8 width), not normalised."""
        raise NotImplementedError

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The four maps, (B, C, H / stride, W / stride), rounded up; the last one normalised."""
        maps = self.maps(images)
        return [x.permute(0, 3, 1, 2) for x in (*maps[:-1], self.norm(maps[-1]))]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.maps(images)[-1]).mean((1, 2))

    @property
    def num_layers(self) -> int:
        """The embedding, the blocks, and what comes after them; see `layer_of`."""
        return self.body.num_blocks + 2

    def layer_of(self, parameter: str) -> int:
        """How deep a parameter lies, for rates that decay by layer: 0 the embedding, 1.. the blocks, then the norm."""
        part, _, rest = parameter.partition(".")
        if part == "body":
            return self.body.layer_of(rest)
        return 0 if part == "patch_embed" else self.num_layers - 1

    def merges(self, parameter: str) -> bool:
        """Whether a parameter belongs to a merging, which methods count to the block before it or to the next."""
        return parameter.startswith("body.merges.")


def window_sizes(window: int | Sequence[int], image_size: int) -> tuple[int, int, int, int]:
    """The four stages' windows: as given, or one for all that shrinks to the map where the map is smaller."""
    if not isinstance(window, int):
        return tuple(window)
    return tuple(min(window, image_size // stride) for stride in (4, 8, 16, 32))
