"""What an encoder is called in other libraries: the layout of its tensors, and the code that loads them there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import UserError
from ..models.backbones import ResNet, ViT
from ..models.backbones.hivit import HiViT
from ..models.backbones.mixmim import MixMIMTransformer
from ..models.backbones.swin import Swin
from .weights import hivit, mixmim, resnet, swin, vit
from .weights.names import Layout


@dataclass(frozen=True)
class Exported:
    """An encoder as another library takes it."""

    layout: Layout
    build: str  # lines of Python that make `model`
    features: str  # an expression of `model` and `images`: what our encoder gives
    prefix: str = ""  # of the names in the file


def target(library: str, encoder: nn.Module, config: object, size: int, classes: int | None) -> Exported:
    """How `library` (timm, torchvision, hf, openmmlab) takes an encoder, with a linear classifier unless `classes` is
    None. Raises `UserError` for what it has no model for."""
    known = _TARGETS[library]
    if type(encoder) not in known:
        others = [name for name, kinds in _TARGETS.items() if type(encoder) in kinds]
        raise UserError(f"--to {library}: has no {type(encoder).__name__}; use --to {' or '.join(others)}")
    return known[type(encoder)](encoder, config, size, classes)


def _call(name: str, *arguments: object, **options: object) -> str:
    given = [repr(a) for a in arguments] + [f"{key}={value!r}" for key, value in options.items()]
    return f"model = {name}({', '.join(given)})"


def _standard_resnet(config: ResNet.Config, library: str, v1d: bool = False) -> None:
    if config.width != 64 or config.small_image_stem or config.sobel or (config.v1d and not v1d):
        raise UserError(f"--to {library}: its ResNets have other stems and widths than this one; use --to safetensors")


def _timm_resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    _standard_resnet(config, "timm", v1d=True)
    name = config.name + "d" * config.v1d
    return Exported(resnet.TORCHVISION, _call("timm.create_model", name, num_classes=classes or 0), "model(images)")


def _vit_shape(config: ViT.Config, size: int) -> dict:
    width, depth, heads = config.shape
    return dict(
        img_size=size,
        patch_size=config.patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=config.hidden_width / width,
    )


def _timm_vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    options = _vit_shape(config, size) | {"num_classes": classes or 0}
    if config.relative_bias is None and config.qkv_bias == "all":
        pooled = config.norm == "pooled"
        options |= {"global_pool": {"mean": "avg", "cls": "token"}[config.pool], "fc_norm": pooled}
        if config.layer_scale is not None:
            options["init_values"] = config.layer_scale
        if config.positions == "none":
            options["pos_embed"] = "none"
        layout = replace(vit.TIMM, pairs=(("fc_norm", "norm"), *vit.TIMM.pairs)) if pooled else vit.TIMM
        return Exported(layout, _call("timm.models.VisionTransformer", **options), "model(images)")
    options |= {
        "qkv_bias": config.qkv_bias != "none",
        "init_values": config.layer_scale,
        "use_abs_pos_emb": config.positions != "none",
        "use_rel_pos_bias": config.relative_bias == "block",
        "use_shared_rel_pos_bias": config.relative_bias == "shared",
    }
    layout, features = vit.BEIT, "model(images)"
    if config.norm == "pooled" and config.pool == "mean":
        options["global_pool"] = "avg"
        layout = replace(layout, pairs=(("fc_norm", "norm"), *layout.pairs))
    else:
        options["global_pool"] = "token"
        if config.pool == "mean":
            features = "model.forward_features(images)[:, 1:].mean(1)"
    return Exported(layout, _call("timm.models.beit.Beit", **options), features)


def _windows(encoder: Swin, size: int, library: str, *, shrink: bool) -> int:
    """The one window of all stages; with `shrink`, up to the size of a stage's map."""
    own = [stage[0].window for stage in encoder.body.stages]
    limits = [size // stride for stride in (4, 8, 16, 32)]
    if own != [min(own[0], limit) if shrink else own[0] for limit in limits]:
        raise UserError(f"--to {library}: has one window for all stages, not {own}; use --to safetensors")
    return own[0]


def _timm_swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    options = dict(img_size=size, embed_dim=width, depths=depths, num_heads=heads)
    options |= dict(window_size=_windows(encoder, size, "timm", shrink=True), num_classes=classes or 0)
    return Exported(swin.TIMM, _call("timm.models.SwinTransformer", **options), "model(images)")


def _torchvision_resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    _standard_resnet(config, "torchvision")
    lines = _call(f"torchvision.models.{config.name}", **({} if classes is None else {"num_classes": classes}))
    return Exported(resnet.TORCHVISION, _headless(lines, "fc", classes), "model(images)")


def _headless(lines: str, head: str, classes: int | None) -> str:
    return lines + f"\nmodel.{head} = torch.nn.Identity()" if classes is None else lines


def _torchvision_vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    if config.pool != "cls" or config.norm != "tokens" or config.positions == "none" or config.qkv_bias != "all":
        raise UserError("--to torchvision: its ViT has a class token for its output and learned positions; use timm")
    width, depth, heads = config.shape
    options = dict(image_size=size, patch_size=config.patch_size, num_layers=depth, num_heads=heads, hidden_dim=width)
    options |= dict(mlp_dim=config.hidden_width, num_classes=classes or 1000)
    lines = _call("torchvision.models.VisionTransformer", **options)
    return Exported(vit.TORCHVISION, _headless(lines, "heads", classes), "model(images)")


def _torchvision_swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    window = _windows(encoder, size, "torchvision", shrink=False)
    options = dict(patch_size=[4, 4], embed_dim=width, depths=list(depths), num_heads=list(heads))
    options |= dict(window_size=[window, window], num_classes=classes or 1000)
    lines = _call("torchvision.models.SwinTransformer", **options)
    return Exported(swin.TORCHVISION, _headless(lines, "head", classes), "model(images)")


def _hf_vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    if config.relative_bias or config.layer_scale is not None or config.qkv_bias != "all" or config.norm != "tokens":
        raise UserError(
            "--to hf: ViTModel has neither relative biases nor layer scale nor a norm after pooling; use timm"
        )
    if config.positions == "none":
        raise UserError("--to hf: ViTModel has positions, this encoder has none; use timm")
    width, depth, heads = config.shape
    options = dict(image_size=size, patch_size=config.patch_size, hidden_size=width, num_hidden_layers=depth)
    options |= dict(num_attention_heads=heads, intermediate_size=config.hidden_width, layer_norm_eps=1e-6)
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    lines = f"model = transformers.ViTModel(transformers.ViTConfig({given}), add_pooling_layer=False)"
    tokens = "[:, 0]" if config.pool == "cls" else "[:, 1:].mean(1)"
    return Exported(vit.HUGGING_FACE, lines, f"model(images).last_hidden_state{tokens}")


def _openmmlab(layout: Layout, build: str, features: str) -> Exported:
    return Exported(layout, build, features, prefix="backbone.")


def _openmmlab_resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    _standard_resnet(config, "openmmlab")
    depth = config.name.removeprefix("resnet")
    if not depth.isdigit():
        raise UserError("--to openmmlab: ResNeXt has other names there; use --to torchvision")
    lines = _call("mmpretrain.models.ResNet", int(depth), style="pytorch")
    return _openmmlab(resnet.OPENMMLAB, lines, "model(images)[-1].mean((2, 3))")


def _openmmlab_vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    width, depth, heads = config.shape
    arch = dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=config.hidden_width)
    out, features = ("cls_token" if config.pool == "cls" else "avg_featmap"), ""
    if config.pool == "mean" and config.norm == "tokens":  # its average has a norm of its own
        out, features = "raw", "[:, 1:].mean(1)"
    options = dict(arch=arch, img_size=size, patch_size=config.patch_size, out_type=out)
    layout = vit.OPENMMLAB
    if config.norm == "pooled":
        layout = replace(layout, pairs=tuple(pair for pair in layout.pairs if pair != ("ln1", "norm")))
    options["final_norm"] = config.norm == "tokens"
    if config.relative_bias is None and config.qkv_bias == "all":
        if config.layer_scale is not None:
            options["layer_scale_init_value"] = config.layer_scale
            layout = replace(layout, pairs=(*_OPENMMLAB_SCALES, *layout.pairs))
        name = "VisionTransformer"
    else:
        name = "BEiTViT"
        options |= {
            "use_abs_pos_emb": config.positions != "none",
            "use_rel_pos_bias": config.relative_bias == "block",
            "use_shared_rel_pos_bias": config.relative_bias == "shared",
            "layer_scale_init_value": config.layer_scale or 0,
            "bias": {"all": True, "qv": "qv_bias", "none": False}[config.qkv_bias],
        }
    return _openmmlab(layout, _call(f"mmpretrain.models.{name}", **options), f"model(images)[-1]{features}")


_OPENMMLAB_SCALES = (
    ("layers.{i}.attn.gamma1.weight", "blocks.{i}.scale1"),
    ("layers.{i}.ffn.gamma2.weight", "blocks.{i}.scale2"),
)


def _openmmlab_swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    arch = dict(embed_dims=width, depths=list(depths), num_heads=list(heads))
    window = _windows(encoder, size, "openmmlab", shrink=False)
    pads = size // 32 < window  # then it shifts single windows as well, which the authors and we do not
    if pads and any(size // (4 << n) == window and len(stage) > 1 for n, stage in enumerate(encoder.body.stages)):
        raise UserError(
            f"--to openmmlab: shifts a map of a single window ({window}) where it pads; use --to safetensors"
        )
    options = dict(arch=arch, img_size=size, window_size=window, pad_small_map=pads)
    lines = _call("mmpretrain.models.SwinTransformer", **options)
    return _openmmlab(swin.OPENMMLAB, lines, "model(images)[-1].mean((2, 3))")


def _openmmlab_mixmim(encoder: MixMIMTransformer, config: MixMIMTransformer.Config, size: int, classes) -> Exported:
    width, depths, heads = config.shape
    arch = dict(embed_dims=width, depths=list(depths), num_heads=list(heads))
    windows = [stage[0].window for stage in encoder.body.stages]
    if any(size // stride % window for stride, window in zip((4, 8, 16, 32), windows, strict=True)):
        raise UserError(f"--to openmmlab: its MixMIM has no maps that windows {windows} do not divide")
    lines = _call("mmpretrain.models.MixMIMTransformer", arch=arch, img_size=size, window_size=windows)
    return _openmmlab(mixmim.OPENMMLAB, lines, "model(images)[-1]")


def _openmmlab_hivit(encoder: HiViT, config: HiViT.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    merges = (2 * depths[0], 2 * depths[0] + 2 * depths[1] + 1)
    options = dict(arch=dict(embed_dims=width, depths=list(depths), num_heads=heads), img_size=size)
    options |= dict(patch_size=config.patch_size, inner_patches=4, ape=config.positions != "none")
    options |= dict(rpe=config.relative_bias, layer_scale_init_value=config.layer_scale or 0.0)
    lines = _call("mmpretrain.models.HiViT", **options, norm_cfg={"type": "LN", "eps": 1e-6})
    lines += (
        f"\nnorm = torch.nn.LayerNorm({width}, eps=1e-6)  # HiViT has none there: norm.weight, norm.bias of the file"
    )
    return _openmmlab(hivit.layouts(*merges)[1], lines, "norm(model(images)[-1].mean((2, 3)))")


_TARGETS = {
    "timm": {ResNet: _timm_resnet, ViT: _timm_vit, Swin: _timm_swin},
    "torchvision": {ResNet: _torchvision_resnet, ViT: _torchvision_vit, Swin: _torchvision_swin},
    "hf": {ViT: _hf_vit},
    "openmmlab": {
        ResNet: _openmmlab_resnet,
        ViT: _openmmlab_vit,
        Swin: _openmmlab_swin,
        MixMIMTransformer: _openmmlab_mixmim,
        HiViT: _openmmlab_hivit,
    },
}
LIBRARIES = tuple(_TARGETS)


def detectron2_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names of a ResNet -> detectron2's."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[-1] == "num_batches_tracked":
            continue
        stage = parts.pop(0) if parts[0].startswith("layer") else None
        text = ".".join(parts).replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for number in "123":
            text = text.replace(f"bn{number}.", f"conv{number}.norm.")
        renamed[f"res{int(stage[-1]) + 1}.{text}" if stage else f"stem.{text}"] = tensor
    return renamed
