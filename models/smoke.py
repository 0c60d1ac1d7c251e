"""Tiny counterparts of views and backbones, from which an algorithm's `Config.smoke` is put together."""

from __future__ import annotations

from dataclasses import replace

from ..pipelines.spec import ViewSpec
from .backbones import BackboneConfig, ResNet
from .backbones.vit import ViT

SIZE, PATCH = 32, 8  # pixels of a tiny view and of its patches


def tiny_view(view: ViewSpec, size: int = SIZE) -> ViewSpec:
    """The same view with `size` pixels a side."""
    return replace(view, size=size, resize=None if view.resize is None else round(view.resize * size / view.size))


def tiny_backbone(config: BackboneConfig) -> BackboneConfig:
    """The same kind of backbone, for 32 px: two narrow blocks on 4 x 4 patches, or a ResNet-18."""
    if isinstance(config, ViT.Config):
        return replace(config, patch_size=PATCH, width=24, depth=2, heads=2, hidden=None)
    if isinstance(config, ResNet.Config):
        return replace(config, name="resnet18", small_image_stem=False)  # the small stem costs 16 times as much
    return config
