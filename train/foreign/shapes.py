"""The configuration of an encoder, read off the shapes of its tensors under our names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import torch

from ...errors import UserError
from ...models.backbones.hivit import HiViT
from ...models.backbones.mixmim import MixMIMTransformer
from ...models.backbones.resnet import ResNet
from ...models.backbones.swin import Swin
from ...models.backbones.transformer import sincos_positions
from ...models.backbones.vit import ViT

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wishes:
    """What tensors do not tell. None: as the layout, the named size or the tables suggest."""

    heads: int | None = None
    pool: str | None = None  # "mean" or "cls"
    mlp: str | None = None  # "gelu" or "quick_gelu"


def shape_of(
    kind: str, state: State, wishes: Wishes, *, pooled_norm: bool = False, implied: dict[str, object] | None = None
) -> tuple[object, int]:
    """The `Config` and the image size in pixels. Raises `UserError` for what no configuration of ours is."""
    try:
        if kind == "vit":
            return _vit(state, wishes, pooled_norm, implied or {})
        return {"resnet": _resnet, "swin": _swin, "mixmim": _mixmim, "hivit": _hivit}[kind](state, wishes)
    except KeyError as missing:
        raise UserError(f"{kind}: no tensor {missing.args[0]}, from which its shape is read") from None


def sizes_of(kind: type) -> dict[str, tuple]:
    """Named size -> its `shape`."""
    return {name: kind.Config(name).shape for name in get_args(get_type_hints(kind.Config)["name"])}


def _sized(kind: type, shape: tuple, parts: tuple[str, ...], **options: object):
    """The `Config` of the named size with this shape, or of the first one with what differs."""
    for name, named in sizes_of(kind).items():
        if named == shape:
            return kind.Config(name, **options)
    return replace(kind.Config(**options), **dict(zip(parts, shape, strict=True)))


def _count(state: State, module: str) -> int:
    numbers = {int(name.split(".")[module.count(".") + 1]) for name in state if name.startswith(module + ".")}
    if len(numbers) <= max(numbers, default=-1):
        raise UserError(
            f"{module}: numbers up to {max(numbers)}, of which {max(numbers) + 1 - len(numbers)} are missing"
        )
    return len(numbers)


def _side(rows: int) -> int:
    """Of a table of relative biases: (2 n - 1)² rows for a square of n², and 3 more with a class token."""
    for side in (math.isqrt(rows), math.isqrt(max(0, rows - 3))):
        if side % 2 and rows - side**2 in (0, 3):
            return side
    raise UserError(f"table of relative biases: {rows} rows are of no square")


def _square(rows: int, what: str) -> int:
    side = math.isqrt(rows)
    if side**2 != rows:
        raise UserError(f"{what}: {rows} places form no square; images of training must be square")
    return side


def _vit(state: State, wishes: Wishes, pooled_norm: bool, implied: dict[str, object]):
    width, _, patch, _ = state["patch_embed.weight"].shape
    depth = _count(state, "blocks")
    rows, hidden = len(state["blocks.0.fc1.weight"]), state["blocks.0.fc2.weight"].shape[1]
    tables = [name for name in ("relative_bias.table", "block_biases.0.table") if name in state]
    positions = implied.get("positions") or _positions_kind(state, width)
    if positions == "none" and not tables:
        raise UserError("vit: no position table and no relative biases; other kinds of positions are DINOv3's alone")
    grid = 224 // patch
    if "positions" in state:
        grid = _square(state["positions"].shape[1], "position table")
    elif tables:
        grid = (_side(len(state[tables[0]])) + 1) // 2
    registers = state["registers"].shape[1] if "registers" in state else 0
    pre_norm = "pre_norm.weight" in state
    options = {
        "patch_size": patch,
        "pool": "mean" if positions != "learned" or pooled_norm else "cls",
        "norm": "pooled" if pooled_norm else "tokens",
        "positions": positions,
        "antialias": registers > 0 and positions == "learned",
        "registers": registers,
        "relative_bias": None if not tables else "shared" if tables[0].startswith("relative") else "block",
        "qkv_bias": "all" if "blocks.0.qkv.bias" in state else "qv" if "blocks.0.q_bias" in state else "none",
        "layer_scale": 0.1 if "blocks.0.scale1" in state else None,  # an initial value; the tensors bring their own
        "pre_norm": pre_norm,
        "norm_eps": 1e-5 if pre_norm else 1e-6,
    }
    options |= implied | {key: value for key in ("pool", "mlp") if (value := getattr(wishes, key))}
    if rows == 2 * hidden:
        if (positions, options["qkv_bias"]) == ("learned", "qv"):
            raise UserError(
                "vit: gated MLPs with biases of queries and values alone: EVA-02, which headrace does not have"
            )
        options["mlp"] = "swiglu"
    heads = state[tables[0]].shape[1] if tables else wishes.heads or _heads(width, depth, positions)
    config = _sized(ViT, (width, depth, heads), ("width", "depth", "heads"), **options)
    if config.hidden_width != hidden:
        config = replace(config, hidden=hidden)
    return config, grid * patch


def _heads(width: int, depth: int, positions: str) -> int:
    """As published: 64 channels a head, but for the huge and giant models, and 128 of DINOv3's with 7 billion."""
    if positions == "rotary":
        return 32 if width == 4096 else max(1, width // 64)
    return {(w, d): h for w, d, h in sizes_of(ViT).values()}.get((width, depth), max(1, width // 64))


def _positions_kind(state: State, width: int) -> str:
    """Fixed tables are known by their values: columns before rows (the authors), or rows before columns (OpenMMLab)."""
    if "positions" not in state:
        return "none"
    grid = _square(state["positions"].shape[1], "position table")
    if width % 4:
        return "learned"
    table = sincos_positions(width, grid, grid)
    found = state["positions"][0].float()
    halves = table.roll(width // 2, dims=1)
    return "sincos" if any(torch.allclose(found, t, atol=1e-3) for t in (table, halves)) else "learned"


def _stages(state: State) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Depths, heads and windows of four stages."""
    stages = range(_count(state, "body.stages"))
    depths = tuple(_count(state, f"body.stages.{s}") for s in stages)
    tables = [state[f"body.stages.{s}.0.bias_table"] for s in stages]
    return depths, tuple(t.shape[1] for t in tables), tuple((_side(len(t)) + 1) // 2 for t in tables)


def _swin(state: State, wishes: Wishes):
    width = len(state["patch_embed.conv.weight"])
    depths, heads, windows = _stages(state)
    options = {"windows": windows, "drop_path": 0.0}
    config = _sized(Swin, (width, depths, heads), ("width", "depths", "heads"), **options)
    side = 32 * windows[-1]  # the last map is one window, but for large windows, which OpenMMLab pads it to
    return config, side if side <= 384 else 224


def _mixmim(state: State, wishes: Wishes):
    width = len(state["patch_embed.conv.weight"])
    depths, heads, windows = _stages(state)
    config = _sized(
        MixMIMTransformer, (width, depths, heads), ("width", "depths", "heads"), windows=windows, drop_path=0.0
    )
    return config, 4 * _square(state["positions"].shape[1], "position table")


def _hivit(state: State, wishes: Wishes):
    pixels = state["patch_embed.weight"].shape[-1]
    width = state["blocks.0.qkv.weight"].shape[1]
    depths = (_count(state, "inner_blocks") // 2, _count(state, "merged_blocks") // 2, _count(state, "blocks"))
    table = state.get("block_biases.0.table")
    named = {w: h for w, _, h in sizes_of(HiViT).values()}
    heads = table.shape[1] if table is not None else wishes.heads or named.get(width, max(1, width // 64))
    grid = 14
    if "positions" in state:
        grid = _square(state["positions"].shape[1], "position table")
    elif table is not None:
        grid = (_side(len(table)) + 1) // 2
    config = _sized(
        HiViT,
        (width, depths, heads),
        ("width", "depths", "heads"),
        patch_size=4 * pixels,
        positions=_positions_kind(state, width),
        relative_bias=table is not None,
        layer_scale=0.1 if "blocks.0.scale1" in state else None,
    )
    return config, grid * 4 * pixels


def _resnet(state: State, wishes: Wishes):
    v1d = "body.conv1.0.weight" in state
    stem = state["body.conv1.0.weight" if v1d else "body.conv1.weight"]
    width = len(state["body.bn1.weight"])
    options = {
        "width": width,
        "v1d": v1d,
        "sobel": stem.shape[1] == 2,
        "small_image_stem": not v1d and stem.shape[-1] == 3,
        "zero_init_residual": False,
    }
    found = {name: tensor.shape for name, tensor in state.items() if name.startswith("body.")}
    for name in get_args(get_type_hints(ResNet.Config)["name"]):
        with torch.device("meta"):
            own = ResNet(ResNet.Config(name, **options)).state_dict()
        if {key: value.shape for key, value in own.items() if key in found} == found and len(found) > len(own) // 2:
            return ResNet.Config(name, **options), 32 if options["small_image_stem"] else 224
    blocks = [_count(state, f"body.layer{stage}") for stage in (1, 2, 3, 4)]
    raise UserError(f"resnet: blocks {blocks} of these widths are no ResNet of headrace; see docs/encoders.md")
