"""The library timm."""

from __future__ import annotations

from dataclasses import replace

from ....models.backbones import ResNet, ViT
from ....models.backbones.swin import Swin
from ....train.foreign import resnet, swin, vit
from .exported import Code, Exported, layer_norm, model, one_window, refuse, standard_resnet


def _resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    standard_resnet(config, "timm", v1d=True)
    name = config.name + "d" * config.v1d
    return Exported(resnet.TORCHVISION, model("timm.create_model", name, num_classes=classes or 0), "model(images)")


def _vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    width, depth, heads = config.shape
    options = dict(img_size=size, patch_size=config.patch_size, embed_dim=width, depth=depth, num_heads=heads)
    options |= dict(mlp_ratio=config.hidden_width / width, num_classes=classes or 0)
    if config.norm_eps != 1e-6:
        options["norm_layer"] = layer_norm(config.norm_eps)
    if config.positions == "rotary":
        return _dinov3(config, options)
    if config.relative_bias is None and config.qkv_bias == "all":
        return _plain(config, options)
    return _beit(config, options)


def _plain(config: ViT.Config, options: dict) -> Exported:
    pooled = config.norm == "pooled"
    options |= {"global_pool": {"mean": "avg", "cls": "token"}[config.pool], "fc_norm": pooled}
    if config.layer_scale is not None:
        options["init_values"] = config.layer_scale
    if config.positions == "none":
        options["pos_embed"] = "none"
    layout = vit.TIMM
    if config.registers:
        options |= {"reg_tokens": config.registers, "no_embed_class": True}
        layout = replace(layout, class_row=False)
    if config.pre_norm:
        options["pre_norm"] = True
    if config.mlp == "quick_gelu":
        options["act_layer"] = Code("timm.layers.QuickGELU")
    if config.mlp == "swiglu":
        options |= {"mlp_layer": Code("timm.layers.SwiGLUPacked"), "act_layer": Code("torch.nn.SiLU")}
        options["mlp_ratio"] *= 2
    if pooled:
        layout = replace(layout, pairs=(("fc_norm", "norm"), *layout.pairs))
    return Exported(layout, model("timm.models.VisionTransformer", **options), "model(images)")


def _beit(config: ViT.Config, options: dict) -> Exported:
    if config.registers or config.pre_norm or config.mlp != "gelu":
        raise refuse(
            "timm", "its BEiT has neither registers, nor a norm before the blocks, nor other MLPs", "safetensors"
        )
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
    return Exported(layout, model("timm.models.beit.Beit", **options), features)


def _dinov3(config: ViT.Config, options: dict) -> Exported:
    if config.qkv_bias == "all" or config.norm == "pooled" or config.pre_norm or config.mlp == "quick_gelu":
        raise refuse("timm", "its DINOv3 has no biases of keys, and one norm after the blocks", "safetensors")
    options |= {
        "qkv_bias": config.qkv_bias == "qv",
        "init_values": config.layer_scale,
        "num_reg_tokens": config.registers,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_fc_norm": False,
        "global_pool": {"mean": "avg", "cls": "token"}[config.pool],
    }
    if config.mlp == "swiglu":
        options |= {"swiglu_mlp": True, "swiglu_align_to": 1}  # aligned to anything, its two first layers are apart
    layout = vit.TIMM_DINOV3_GATED if config.mlp == "swiglu" else vit.TIMM_DINOV3
    return Exported(layout, model("timm.models.Eva", **options), "model(images)")


def _swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    options = dict(img_size=size, embed_dim=width, depths=depths, num_heads=heads)
    options |= dict(window_size=one_window(encoder, size, "timm", shrink=True), num_classes=classes or 0)
    return Exported(swin.TIMM, model("timm.models.SwinTransformer", **options), "model(images)")


KINDS = {ResNet: _resnet, ViT: _vit, Swin: _swin}
