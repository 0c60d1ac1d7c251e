"""The library transformers, from version 5. Its models have no classifier here: headrace's is left out."""

from __future__ import annotations

from dataclasses import replace

from ....models.backbones import ResNet, ViT
from ....models.backbones.swin import Swin
from ....train.foreign import hugging_face as layouts
from ....train.foreign.names import Layout
from .exported import Exported, beyond_plain, call, one_window, refuse, standard_resnet


def _exported(layout: Layout, name: str, options: dict, features: str, **more: object) -> Exported:
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    config = call(f"transformers.{name}Config", **options)
    return Exported(layout, f"model = transformers.{name}Model({config}{arguments})", f"model(images).{features}")


def _vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    width, depth, heads = config.shape
    options = dict(image_size=size, patch_size=config.patch_size, hidden_size=width, num_hidden_layers=depth)
    options |= dict(num_attention_heads=heads, layer_norm_eps=config.norm_eps)
    if config.mlp != "swiglu":
        options |= dict(intermediate_size=config.hidden_width, hidden_act=config.mlp)
    beyond = set(beyond_plain(config))
    for make, least, most in _VITS:
        if least <= beyond <= most:
            return make(config, options)
    known = "ViT, CLIP, DINOv2 (with registers), DINOv3 and BEiT"
    raise refuse("hf", f"of {known} none has together, or does without: {', '.join(sorted(beyond))}")


def _tokens(config: ViT.Config, first: int = 1) -> str:
    return "last_hidden_state[:, 0]" if config.pool == "cls" else f"last_hidden_state[:, {first}:].mean(1)"


def _plain(config: ViT.Config, options: dict) -> Exported:
    return _exported(layouts.HUGGING_FACE, "ViT", options, _tokens(config), add_pooling_layer=False)


def _clip(config: ViT.Config, options: dict) -> Exported:
    if config.pool != "cls":
        raise refuse("hf", "CLIP's norm after the blocks is of the class token alone")
    return _exported(layouts.CLIP, "CLIPVision", options, "pooler_output")


def _dinov2(config: ViT.Config, options: dict) -> Exported:
    gated, width, hidden = config.mlp == "swiglu", options["hidden_size"], config.hidden_width
    widths = {ratio: (2 * width * ratio // 3 + 7) // 8 * 8 if gated else width * ratio for ratio in range(1, 9)}
    if hidden not in widths.values():
        raise refuse(
            "hf", f"DINOv2's MLPs of width {width} have {', '.join(map(str, widths.values()))} channels, not {hidden}"
        )
    options.pop("intermediate_size", None)
    options |= dict(use_swiglu_ffn=gated, mlp_ratio=next(r for r in widths if widths[r] == hidden))
    layout = layouts.DINOV2_GATED if gated else layouts.DINOV2
    if not config.registers:
        return _exported(layout, "Dinov2", options, _tokens(config))
    options["num_register_tokens"] = config.registers
    return _exported(layout, "Dinov2WithRegisters", options, _tokens(config, 1 + config.registers))


def _dinov3(config: ViT.Config, options: dict) -> Exported:
    gated = config.mlp == "swiglu"
    if gated:
        options |= dict(intermediate_size=config.hidden_width, hidden_act="silu")
    options |= dict(num_register_tokens=config.registers, use_gated_mlp=gated)
    options |= dict.fromkeys(("query_bias", "value_bias"), config.qkv_bias == "qv")
    layout = layouts.DINOV3_GATED if gated else layouts.DINOV3
    return _exported(layout, "DINOv3ViT", options, _tokens(config, 1 + config.registers))


def _beit(config: ViT.Config, options: dict) -> Exported:
    if config.qkv_bias == "none":
        raise refuse("hf", "BEiT's queries and values have biases")
    pooled = config.norm == "pooled"
    options |= {
        "use_absolute_position_embeddings": config.positions != "none",
        "use_relative_position_bias": config.relative_bias == "block",
        "use_shared_relative_position_bias": config.relative_bias == "shared",
        "layer_scale_init_value": config.layer_scale,
        "use_mean_pooling": pooled,
    }
    if pooled and config.pool != "mean":
        raise refuse("hf", "BEiT's norm after pooling is of the mean")
    if pooled:
        return _exported(layouts.BEIT, "Beit", options, "pooler_output")
    layout = replace(layouts.BEIT, pairs=layouts.BEIT.pairs[1:])  # the norm before pooling
    return _exported(layout, "Beit", options, _tokens(config), add_pooling_layer=False)


# a model's maker, what an encoder must have beyond a plain ViT, and what it may have
_VITS = (
    (_plain, set(), set()),
    (_clip, {"a norm before the blocks"}, {"a norm before the blocks"}),
    (_dinov2, {"layer scale"}, {"layer scale", "registers", "a gated MLP"}),
    (
        _dinov3,
        {"rotary positions", "layer scale", "keys without biases"},
        {"rotary positions", "layer scale", "keys without biases", "registers", "a gated MLP"},
    ),
    (
        _beit,
        {"relative biases", "layer scale", "keys without biases"},
        {"relative biases", "layer scale", "keys without biases", "patches without positions", "a norm after pooling"},
    ),
)


def _swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    window = one_window(encoder, size, "hf", shrink=False)
    if size // 32 < window:
        raise refuse("hf", f"has no maps of {size // 32} that are smaller than windows of {window}")
    options = dict(image_size=size, patch_size=4, embed_dim=width, depths=list(depths), num_heads=list(heads))
    return _exported(layouts.SWIN, "Swin", options | {"window_size": window}, "pooler_output")


def _resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    standard_resnet(config, "hf")
    stages = [len(stage) for stage in (getattr(encoder.body, f"layer{n}") for n in (1, 2, 3, 4))]
    kind = "basic" if config.name in ("resnet18", "resnet34") else "bottleneck"
    if config.name.startswith("resnext"):
        raise refuse("hf", "has no ResNeXt")
    sizes = [64 * 2**n * (1 if kind == "basic" else 4) for n in range(4)]
    options = dict(embedding_size=64, hidden_sizes=sizes, depths=stages, layer_type=kind)
    return _exported(layouts.RESNET, "ResNet", options, "pooler_output.flatten(1)")


KINDS = {ResNet: _resnet, ViT: _vit, Swin: _swin}
