"""The parts that plain transformers are made of: attention, blocks, relative bias, position tables, drop path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.biased_attention import biased_attention

QKVBias = Literal["all", "qv", "none"]
MLP = Literal["gelu", "quick_gelu", "swiglu"]


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


def resize_positions(
    table: torch.Tensor,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    antialias: bool = False,
    offset: float = 0.0,
) -> torch.Tensor:
    """(1, rows * columns, D) of one grid -> of another: bicubic in float32, or the table itself for the same grid.

    The cubic has a = -0.75; with `antialias` a = -0.5, and wider taps where the new grid is coarser (timm). `offset` is
    added to the sides of the new grid where places are looked up: the authors of DINO have 0.1, so that place i of n
    is (i + 0.5) old / (n + 0.1) - 0.5 of the old ones.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    image = table.float().unflatten(1, grid).permute(0, 3, 1, 2)
    to = {"size": tuple(new_grid)}
    if offset:
        to = {"scale_factor": tuple((new + offset) / old for new, old in zip(new_grid, grid))}
    resized = F.interpolate(image, **to, mode="bicubic", align_corners=False, antialias=antialias)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


def positions_of(table: torch.Tensor, grid: tuple[int, int], patches: int) -> torch.Tensor:
    """`resize_positions` for a square image of so many patches."""
    side = math.isqrt(patches)
    return table if patches == grid[0] * grid[1] else resize_positions(table, grid, (side, side))


def whole_patches(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, C, H, W) with zeros at the bottom and right up to whole patches."""
    down, right = (-side % patch_size for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down)) if down or right else images


def add_positions(module: nn.Module, kind: str, width: int, grid: tuple[int, int]) -> None:
    """Gives a module its table `positions` (1, rows * columns, width): "sincos", "learned", or else None."""
    table = None
    if kind == "sincos":
        # a buffer, so that a checkpoint carries it: implementations disagree on the order of rows and columns
        table = sincos_positions(width, *grid)[None]
    elif kind == "learned":
        module.positions = nn.Parameter(torch.empty(1, grid[0] * grid[1], width))
        nn.init.trunc_normal_(module.positions, std=0.02)
        return
    module.register_buffer("positions", table)


def rotary_table(
    width: int,
    rows: int,
    columns: int,
    scale: torch.Tensor | float = 1.0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """(2, rows * columns, width) float32: cosines and sines of the angles by which heads of this width are turned.

    Coordinates are the centres of patches in an image that reaches from -1 to 1, row before column; periods are
    100^(4 k / width) for k < width / 4, and both halves of a head have the same angles (DINOv3, arXiv 2508.10104).
    `scale`, a number or a scalar tensor, enlarges the coordinates; `dtype` is that of all steps on the way.
    """
    periods = 100.0 ** (4 * torch.arange(width // 4, device=device, dtype=dtype) / width)
    y, x = ((2 * torch.arange(side, device=device, dtype=dtype) + 1) / side - 1 for side in (rows, columns))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1) * scale
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Queries or keys (B, heads, N, width) with the last tokens turned by a `rotary_table` (2, [B, 1,] n, width)."""
    first, patches = x.split([x.shape[-2] - table.shape[-2], table.shape[-2]], dim=-2)
    a, b = patches.chunk(2, dim=-1)
    turned = patches * table[0] + torch.cat([-b, a], dim=-1) * table[1]
    return torch.cat([first, turned.to(x.dtype)], dim=-2)


def drop_path(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Zeroes whole samples with probability `rate` and enlarges the others to match (arXiv 1603.09382)."""
    if not training or rate == 0.0:
        return x
    kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class Subset(NamedTuple):
    """The rows of a batch that keep a branch, and what its results are multiplied by to match."""

    rows: torch.Tensor  # (n,) int64
    gain: float


def drawn_subset(batch: int, rate: float, device: torch.device) -> Subset:
    """max(1, int(batch (1 - rate))) rows drawn without replacement, by torch's generator."""
    rows = torch.randperm(batch, device=device)[: max(1, int(batch * (1 - rate)))]
    return Subset(rows, batch / len(rows))


class RelativeBias(nn.Module):
    """One learned bias for each offset between two patches, and for each head (BEiT, arXiv 2106.08254).

    `forward(grid)` -> (heads, N, N). With a class token, which is token 0, three more rows stand for class to patch,
    patch to class and class to itself; N is then 1 + rows * columns.
    """

    def __init__(self, grid: tuple[int, int], heads: int, *, class_token: bool, std: float = 0.0) -> None:
        super().__init__()
        self.grid, self.class_token = tuple(grid), class_token
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.table = nn.Parameter(torch.zeros(offsets + 3 * class_token, heads))
        self.register_buffer("index", relative_index(self.grid, class_token), persistent=False)
        if std:
            nn.init.trunc_normal_(self.table, std=std)

    def forward(self, grid: tuple[int, int] | None = None) -> torch.Tensor:
        if grid is None or tuple(grid) == self.grid:
            return F.embedding(self.index, self.table).permute(2, 0, 1)  # its gradient has the same bits each time
        index = relative_index(tuple(grid), self.class_token).to(self.table.device)
        return F.embedding(index, self._resized(grid)).permute(2, 0, 1)

    def _resized(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table for another grid: bicubic over the offsets; the rows of the class token stay."""
        sides = [2 * side - 1 for side in self.grid]
        new_sides = [2 * side - 1 for side in grid]
        patches = self.table[: sides[0] * sides[1]].float().T.view(1, -1, *sides)
        resized = F.interpolate(patches, new_sides, mode="bicubic", align_corners=False).flatten(2)[0].T
        return torch.cat([resized.to(self.table.dtype), self.table[sides[0] * sides[1] :]])


def relative_index(grid: tuple[int, int], class_token: bool) -> torch.Tensor:
    """(N, N) int64 rows of a `RelativeBias`: (y_i - y_j + h-1) (2w-1) + (x_i - x_j + w-1) for query i and key j."""
    rows, columns = grid
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    index = (y[:, None] - y + rows - 1) * (2 * columns - 1) + (x[:, None] - x + columns - 1)
    if not class_token:
        return index
    first = (2 * rows - 1) * (2 * columns - 1)
    whole = torch.full((rows * columns + 1,) * 2, first)
    whole[1:, 1:], whole[1:, 0], whole[0, 0] = index, first + 1, first + 2
    return whole


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). (B, N, width) -> the same.

    `bias` (heads, N, N), or (B, heads, N, N), is added to the logits of attention; queries and keys of patches are
    turned by `rotary`, a `rotary_table`. `layer_scale` is the initial value of the learned factors of both branches.
    `qkv_bias` "qv": none for the keys (BEiT). `mlp` "swiglu": silu(a) * b of the halves a and b of a first layer with
    2 `hidden` outputs (arXiv 2002.05202); "quick_gelu": x * sigmoid(1.702 x) (CLIP). With `drop_subsets` each branch
    is computed for a subset of the samples alone, whose results are enlarged to match (arXiv 2304.07193): `subsets` of
    attention and MLP, or random ones.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int | None = None,
        *,
        qkv_bias: QKVBias = "all",
        layer_scale: float | None = None,
        mlp: MLP = "gelu",
        drop_path: float = 0.0,
        drop_subsets: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.heads, self.activation, self.drop_path, self.drop_subsets = heads, mlp, drop_path, drop_subsets
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == "all")
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, 2 * hidden if mlp == "swiglu" else hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.scale1 = self.scale2 = None
        if layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((width,), layer_scale))
            self.scale2 = nn.Parameter(torch.full((width,), layer_scale))

    def projected(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values of normalised tokens: (B, N, width) -> (B, N, 3, heads, width / heads)."""
        B, N, D = x.shape
        qkv_bias = self.qkv.bias
        if qkv_bias is None and hasattr(self, "q_bias"):
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, qkv_bias).view(B, N, 3, self.heads, D // self.heads)

    def attention_weights(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, rotary: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What `attention` averages values with: softmax(q k^T / sqrt(d) + bias), (B, heads, N, N), rows sum to 1."""
        q, k, _ = self.projected(x).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return (logits if bias is None else logits + bias).softmax(-1)

    def attention(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, rotary: torch.Tensor | None = None
    ) -> torch.Tensor:
        B, N, D = x.shape
        qkv = self.projected(x)
        if bias is not None and bias.dim() == 3:
            return self.proj(biased_attention(qkv, bias.contiguous()).reshape(B, N, D))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # what torch's own attention does well
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        attended = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))
        return self.proj(attended.transpose(1, 2).reshape(B, N, D))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.activation == "gelu":
            x = F.gelu(x)
        elif self.activation == "quick_gelu":
            x = x * torch.sigmoid(1.702 * x)
        else:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        return self.fc2(x)

    def forward(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        rotary: torch.Tensor | None = None,
        subsets: tuple[Subset, Subset] | None = None,
    ) -> torch.Tensor:
        if self.drop_subsets and self.training and self.drop_path:
            first, second = subsets or [drawn_subset(len(x), self.drop_path, x.device) for _ in range(2)]
            x = self._of_subset(x, first, lambda rows: self.attention(self.norm1(rows), bias, rotary), self.scale1)
            return self._of_subset(x, second, lambda rows: self.mlp(self.norm2(rows)), self.scale2)
        x = x + self._branch(self.attention(self.norm1(x), bias, rotary), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _of_subset(
        self,
        x: torch.Tensor,
        subset: Subset,
        branch: Callable[[torch.Tensor], torch.Tensor],
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        added = branch(x[subset.rows])
        added = added if scale is None else added * scale
        return x.index_add(0, subset.rows, added.to(x.dtype), alpha=subset.gain)

    def _branch(self, x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return drop_path(x if scale is None else x * scale, self.drop_path, self.training)


def drop_rates(last: float, blocks: int) -> list[float]:
    """Linear from 0 at the first block to `last`."""
    return [last * i / max(1, blocks - 1) for i in range(blocks)]


def init_transformer(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, as in MAE."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_trunc_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear layers and convolutions ~ N(0, std), cut at 2 in absolute value; zero bias. BEiT, Swin, DeiT."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
