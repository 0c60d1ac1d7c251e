"""OpenMMLab's MMPretrain 1.2."""

from __future__ import annotations

from dataclasses import replace

from ....errors import UserError
from ....models.backbones import ResNet, ViT
from ....models.backbones.hivit import HiViT
from ....models.backbones.mixmim import MixMIMTransformer
from ....models.backbones.swin import Swin
from ....train.foreign import hivit, mixmim, resnet, swin, vit
from ....train.foreign.names import Layout
from .exported import Exported, model, one_window, refuse, standard_resnet


def _exported(layout: Layout, build: str, features: str) -> Exported:
    return Exported(layout, build, features, prefix="backbone.")


def _resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    standard_resnet(config, "openmmlab")
    depth = config.name.removeprefix("resnet")
    if not depth.isdigit():
        raise UserError("--to openmmlab: ResNeXt has other names there; use --to torchvision")
    lines = model("mmpretrain.models.ResNet", int(depth), style="pytorch")
    return _exported(resnet.OPENMMLAB, lines, "model(images)[-1].mean((2, 3))")


def _vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    if config.registers or config.positions == "rotary":
        raise refuse("openmmlab", "its ViT has neither registers nor rotary positions")
    width, depth, heads = config.shape
    gated = config.mlp == "swiglu"
    if gated and config.hidden_width % 8:
        raise refuse("openmmlab", f"its gated MLPs have a multiple of 8 channels, not {config.hidden_width}")
    hidden = config.hidden_width * 3 // 2 if gated else config.hidden_width  # two thirds are taken of it there
    arch = dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=hidden)
    out, features = ("cls_token" if config.pool == "cls" else "avg_featmap"), ""
    if config.pool == "mean" and config.norm == "tokens":  # its average has a norm of its own
        out, features = "raw", "[:, 1:].mean(1)"
    options = dict(arch=arch, img_size=size, patch_size=config.patch_size, out_type=out)
    layout = vit.OPENMMLAB
    if config.norm == "pooled":
        layout = replace(layout, pairs=tuple(pair for pair in layout.pairs if pair != ("ln1", "norm")))
    options["final_norm"] = config.norm == "tokens"
    if config.norm_eps != 1e-6:
        options["norm_cfg"] = {"type": "LN", "eps": config.norm_eps}
    if config.relative_bias is None and config.qkv_bias == "all":
        if config.layer_scale is not None:
            options["layer_scale_init_value"] = config.layer_scale
            layout = replace(layout, pairs=(*_SCALES, *layout.pairs))
        if config.pre_norm:
            options["pre_norm"] = True
        if config.mlp == "quick_gelu":
            options["layer_cfgs"] = {"act_cfg": {"type": "mmpretrain.QuickGELU"}}
        if gated:
            options["layer_cfgs"] = {"ffn_type": "swiglu_fused"}
            layout = replace(layout, pairs=(*_GATED, *layout.pairs))
        name = "VisionTransformer"
    elif config.pre_norm or config.mlp != "gelu":
        raise refuse("openmmlab", "its BEiT has neither a norm before the blocks nor other MLPs", "safetensors")
    else:
        name = "BEiTViT"
        options |= {
            "use_abs_pos_emb": config.positions != "none",
            "use_rel_pos_bias": config.relative_bias == "block",
            "use_shared_rel_pos_bias": config.relative_bias == "shared",
            "layer_scale_init_value": config.layer_scale or 0,
            "bias": {"all": True, "qv": "qv_bias", "none": False}[config.qkv_bias],
        }
    return _exported(layout, model(f"mmpretrain.models.{name}", **options), f"model(images)[-1]{features}")


_GATED = (("layers.{i}.ffn.w12", "blocks.{i}.fc1"), ("layers.{i}.ffn.w3", "blocks.{i}.fc2"))
_SCALES = (
    ("layers.{i}.attn.gamma1.weight", "blocks.{i}.scale1"),
    ("layers.{i}.ffn.gamma2.weight", "blocks.{i}.scale2"),
)


def _swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    arch = dict(embed_dims=width, depths=list(depths), num_heads=list(heads))
    window = one_window(encoder, size, "openmmlab", shrink=False)
    pads = size // 32 < window  # then it shifts single windows as well, which the authors and we do not
    if pads and any(size // (4 << n) == window and len(stage) > 1 for n, stage in enumerate(encoder.body.stages)):
        raise UserError(
            f"--to openmmlab: shifts a map of a single window ({window}) where it pads; use --to safetensors"
        )
    options = dict(arch=arch, img_size=size, window_size=window, pad_small_map=pads)
    lines = model("mmpretrain.models.SwinTransformer", **options)
    return _exported(swin.OPENMMLAB, lines, "model(images)[-1].mean((2, 3))")


def _mixmim(encoder: MixMIMTransformer, config: MixMIMTransformer.Config, size: int, classes) -> Exported:
    width, depths, heads = config.shape
    arch = dict(embed_dims=width, depths=list(depths), num_heads=list(heads))
    windows = [stage[0].window for stage in encoder.body.stages]
    if any(size // stride % window for stride, window in zip((4, 8, 16, 32), windows, strict=True)):
        raise UserError(f"--to openmmlab: its MixMIM has no maps that windows {windows} do not divide")
    lines = model("mmpretrain.models.MixMIMTransformer", arch=arch, img_size=size, window_size=windows)
    return _exported(mixmim.OPENMMLAB, lines, "model(images)[-1]")


def _hivit(encoder: HiViT, config: HiViT.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    merges = (2 * depths[0], 2 * depths[0] + 2 * depths[1] + 1)
    options = dict(arch=dict(embed_dims=width, depths=list(depths), num_heads=heads), img_size=size)
    options |= dict(patch_size=config.patch_size, inner_patches=4, ape=config.positions != "none")
    options |= dict(rpe=config.relative_bias, layer_scale_init_value=config.layer_scale or 0.0)
    lines = model("mmpretrain.models.HiViT", **options, norm_cfg={"type": "LN", "eps": 1e-6})
    lines += (
        f"\nnorm = torch.nn.LayerNorm({width}, eps=1e-6)  # HiViT has none there: norm.weight, norm.bias of the file"
    )
    return _exported(hivit.layouts(*merges)[1], lines, "norm(model(images)[-1].mean((2, 3)))")


KINDS = {ResNet: _resnet, ViT: _vit, Swin: _swin, MixMIMTransformer: _mixmim, HiViT: _hivit}
