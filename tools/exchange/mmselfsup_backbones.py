"""OpenMMLab's encoders in headrace's words."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from ...errors import UserError
from ...models.backbones import ResNet, ViT
from ...models.backbones.hivit import HiViT
from ...models.backbones.mixmim import MixMIMTransformer
from ...models.backbones.swin import Swin
from .config_source import Source

_AT = "model.backbone"
# backbone.type -> the beginning of our names; all of a kind that the method makes its own of
_KINDS = {
    "ResNet": "resnet",
    "ResNetSobel": "resnet",
    "ResNeXt": "resnext",
    "SwinTransformer": "swin",
    "SimMIMSwinTransformer": "swin",
    "MixMIMTransformer": "mixmim",
    "MixMIMTransformerPretrain": "mixmim",
    "MixMIMPretrainTransformer": "mixmim",
    "HiViT": "hivit",
    "MAEHiViT": "hivit",
    **dict.fromkeys(("VisionTransformer", "MAEViT", "MILANViT", "MaskFeatViT", "SimMIMViT", "MoCoV3ViT"), "vit"),
    **dict.fromkeys(("BEiTViT", "BEiTPretrainViT", "CAEViT", "CAEPretrainViT"), "vit"),
}
_CONFIGS = {
    "resnet": ResNet.Config,
    "resnext": ResNet.Config,
    "swin": Swin.Config,
    "mixmim": MixMIMTransformer.Config,
    "hivit": HiViT.Config,
    "vit": ViT.Config,
}
_RESNEXTS = {50: "resnext50_32x4d", 101: "resnext101_32x8d"}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "deit-b": "base", "deit-s": "small"}
_ARCH = {"embed_dims": "width", "num_layers": "depth", "num_heads": "heads", "depths": "depths"}
_ARCH |= {"feedforward_channels": "hidden"}
# their argument -> ours, by kind
_ARRIVES: dict[str, dict[str, str]] = {
    "resnet": {"zero_init_residual": "zero_init_residual"},
    "resnext": {"zero_init_residual": "zero_init_residual"},
    "vit": {
        "patch_size": "patch_size",
        "drop_path_rate": "drop_path",
        "layer_scale_init_value": "layer_scale",
        "init_values": "layer_scale",
        "stop_grad_conv1": "freeze_patch_embed",
    },
    "swin": {"drop_path_rate": "drop_path"},
    "mixmim": {"drop_path_rate": "drop_path", "window_size": "windows"},
    "hivit": {
        "patch_size": "patch_size",
        "drop_path_rate": "drop_path",
        "layer_scale_init_value": "layer_scale",
        "rpe": "relative_bias",
    },
}
# their argument -> what it is in headrace; @ as in mmselfsup_same.py
_TRANSFORMER = {"img_size": "@size", "drop_rate": 0.0, "attn_drop_rate": 0.0, "frozen_stages": -1, "norm_eval": False}
_RESNET = {
    "in_channels": "@channels",
    "num_stages": 4,
    "out_indices": ([4], [3]),
    "style": "pytorch",
    "frozen_stages": -1,
    "norm_eval": False,
    "norm_cfg.type": "@norm",
    "norm_cfg.requires_grad": True,
    "deep_stem": False,
    "avg_down": False,
}
SAME: dict[str, dict[str, Any]] = {
    "resnet": _RESNET,
    "resnext": _RESNET | {"groups": 32, "width_per_group": "@group_width"},
    "vit": _TRANSFORMER
    | {
        "in_channels": 3,
        "in_chans": 3,
        "qkv_bias": "@qkv_bias",
        "bias": "@bias",
        "norm_cfg.type": "LN",
        "norm_cfg.eps": "@norm_eps",
        "final_norm": True,
        "out_indices": -1,
        "out_type": "raw",
        "with_cls_token": True,
        "output_cls_token": True,
        "avg_token": False,
        "interpolate_mode": "bicubic",
        "use_abs_pos_emb": "@table",
        "use_rel_pos_bias": "@block_bias",
        "use_shared_rel_pos_bias": "@shared_bias",
    },
    "swin": _TRANSFORMER | {"in_channels": 3, "use_abs_pos_embed": False, "out_indices": [3], "norm_cfg.type": "LN"},
    "mixmim": _TRANSFORMER
    | {"in_channels": 3, "patch_size": 4, "mlp_ratio": 4, "qkv_bias": True, "norm_cfg.type": "LN"},
    "hivit": _TRANSFORMER | {"inner_patches": 4, "norm_cfg.type": "LN", "norm_cfg.eps": 1e-6, "ape": True},
}


def backbone(source: Source) -> tuple[str, dict[str, Any]]:
    """The kind of encoder and its section of a recipe. Raises `UserError` for one that headrace does not have."""
    named = str(source.take(f"{_AT}.type", "")).rpartition(".")[2]
    if not source.keys(_AT) and not named:
        return "", {}
    if named not in _KINDS:
        raise UserError(f"model.backbone.type: {named!r} is no encoder of headrace; known: {', '.join(sorted(_KINDS))}")
    kind, found = _KINDS[named], {}
    if kind.startswith("res"):
        depth = source.take(f"{_AT}.depth", 50)
        name = _RESNEXTS.get(depth, f"resnext{depth}") if kind == "resnext" else f"resnet{depth}"
        found |= _named(source, kind, name, f"depth = {depth}")
        if source.get(f"{_AT}.in_channels") == 2 or named == "ResNetSobel" or source.get("model.with_sobel") is True:
            found["sobel"] = True
    else:
        found |= _size(source, kind)
    for theirs, own in _ARRIVES[kind].items():
        value = source.take(f"{_AT}.{theirs}")
        if value is not None:
            found[own] = (value or None) if own == "layer_scale" else value
    if kind == "swin":
        found |= _windows(source)
    return kind, found


def _size(source: Source, kind: str) -> dict[str, Any]:
    arch = source.take(f"{_AT}.arch", source.take(f"{_AT}.model_name", "base"))
    if isinstance(arch, dict):
        source.report.without += [f"{_AT}.arch.{key} = {value}" for key, value in arch.items() if key not in _ARCH]
        return {"name": f"{kind}_base"} | {_ARCH[key]: value for key, value in arch.items() if key in _ARCH}
    word = str(arch).lower()
    size = _SIZES.get(word.removeprefix("mocov3-"), word.removeprefix("mocov3-"))
    heads = {"heads": 12} if word == "mocov3-small" else {}
    return _named(source, kind, f"{kind}_{size}", f"arch = {arch}") | heads


def _named(source: Source, kind: str, name: str, given: str) -> dict[str, Any]:
    """A size by its name, which is reported where headrace has none such."""
    if name in get_args(get_type_hints(_CONFIGS[kind])["name"]):
        return {"name": name}
    source.report.without.append(f"{_AT}.{given}")
    return {}


def _windows(source: Source) -> dict[str, Any]:
    """One for all stages, which shrinks to a map that is smaller; or one for each, to which such a map is padded."""
    window = source.take(f"{_AT}.window_size", source.take(f"{_AT}.stage_cfgs.block_cfgs.window_size"))
    padded = source.take(f"{_AT}.pad_small_map", False)
    if window is None:
        return {}
    whole = isinstance(window, list)
    return {"windows": window if whole else [window] * 4} if whole or padded else {"window": window}


def built(kind: str, found: dict[str, Any], default: Any) -> Any:
    """The encoder's `Config`: `found` over the method's default, if that is of the same kind."""
    if not kind:
        return default
    start = default if isinstance(default, _CONFIGS[kind]) else _CONFIGS[kind]()
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    try:
        return dataclasses.replace(start, **found)
    except (TypeError, ValueError, IndexError) as fault:
        raise UserError(f"model.backbone: {fault}") from None


def facts(config: Any) -> dict[str, Any]:
    """What other settings of a model follow from its encoder."""
    found: dict[str, Any] = {"drop_path": getattr(config, "drop_path", 0.0)}
    found["layer_scale"] = getattr(config, "layer_scale", None)
    found["sobel"] = getattr(config, "sobel", False)
    if isinstance(config, ResNet.Config):
        small = config.name in ("resnet18", "resnet34")
        found |= {"features": 512 if small else 2048, "channels": 2 if config.sobel else 3}
        return found | {"group_width": int(config.name.partition("x")[2].partition("x")[2].partition("d")[0] or 0)}
    try:
        width, depth, heads = config.shape
    except (KeyError, TypeError, ValueError) as fault:
        raise UserError(f"model.backbone: {config.name}: {fault}") from None
    found |= {"features": width * (8 if isinstance(config, (Swin.Config, MixMIMTransformer.Config)) else 1)}
    found |= {"heads": heads, "depth": depth, "patch_size": getattr(config, "patch_size", 4)}
    found["arch"] = (config.name.partition("_")[2], config.name.partition("_")[2][0])
    if isinstance(config, ViT.Config):
        found |= {
            "norm_eps": config.norm_eps,
            "qkv_bias": config.qkv_bias == "all",
            "bias": {"all": True, "qv": "qv_bias", "none": False}[config.qkv_bias],
            "table": config.positions != "none",
            "block_bias": config.relative_bias == "block",
            "shared_bias": config.relative_bias == "shared",
        }
    return found
