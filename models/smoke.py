"""Tiny counterparts of views and backbones, from which an algorithm's `Config.smoke` is put together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ..pipelines.spec import ViewSpec
from .backbones import BackboneConfig, ResNet
from .backbones.hivit import HiViT
from .backbones.mixmim import MixMIMTransformer
from .backbones.swin import Swin
from .backbones.vit import ViT

SIZE, PATCH = 32, 8  # pixels of a tiny view and of its patches


def tiny(config: Any, size: int = SIZE, **change: object) -> Any:
    """A method's `Config` with all its views at `size` pixels, a tiny backbone, and `change`."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    views = {name: tiny_view(value, size) for name, value in values.items() if isinstance(value, ViewSpec)}
    return replace(config, **{**views, "backbone": tiny_backbone(config.backbone), **change})


def tiny_view(view: ViewSpec, size: int = SIZE) -> ViewSpec:
    """The same view with `size` pixels a side; where its size changes, with others in proportion, whole patches."""
    sizes = {
        moment: tuple(max(PATCH, round(side * size / view.size / PATCH) * PATCH) for side in sides)
        for moment, sides in view.sizes.items()
    }
    resize = None if view.resize is None else round(view.resize * size / view.size)
    return replace(view, size=size, sizes=sizes, resize=resize)


def tiny_backbone(config: BackboneConfig) -> BackboneConfig:
    """The same kind of backbone, for 32 px: two narrow blocks on 4 x 4 patches, or a narrow ResNet-18.

    One's own, and timm's, stay as they are."""
    if isinstance(config, ViT.Config):
        return replace(config, patch_size=PATCH, width=24, depth=2, heads=2, hidden=None)
    if isinstance(config, ResNet.Config):
        return replace(config, name="resnet18", width=8, small_image_stem=not (config.v1d or config.sobel))
    if isinstance(config, HiViT.Config):
        return replace(config, patch_size=PATCH, width=32, depths=(1, 1, 2), heads=2)
    if isinstance(config, (Swin.Config, MixMIMTransformer.Config)):  # whose last stage has one token on 32 px
        return replace(config, width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2))
    return config
