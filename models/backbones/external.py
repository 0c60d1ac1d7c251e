"""Backbones from elsewhere: of the timm library, ``backbone: {name: timm, model: convnext_tiny}``, and one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ...errors import UserError
from ...outside import called, imported
from ...schema.bounds import Count


class Timm(nn.Module):
    """A timm model without its classifier: images (B, C, H, W) -> (B, features), pooled as timm pools it."""

    @dataclass(frozen=True)
    class Config:
        name: Literal["timm"] = "timm"
        model: str = "resnet50"  # as in timm.list_models(); weights are random
        in_channels: Count = 3  # of the images

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise UserError(f"backbone.model: {config.model} needs the timm package; pip install timm") from None
        if config.model not in timm.list_models():
            raise UserError(f"backbone.model: timm has no model {config.model!r}; see timm.list_models()")
        options = {"num_classes": 0, "in_chans": config.in_channels}
        try:
            self.body = timm.create_model(config.model, **options, img_size=image_size)
        except TypeError:  # convolutional networks take any size and are not told one
            self.body = timm.create_model(config.model, **options)
        self.features = self.body.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@dataclass(frozen=True)
class Own:
    """A backbone of one's own by its dotted name: ``backbone: {name: my_nets.Plain, options: {width: 32}}``.

    Called with the side of the training images in pixels, and `options`, it gives a module that maps images
    (B, 3, H, W) to (B, D) and has D as its attribute `features`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        called(self.name, ("image_size",), self.options, what="backbone")

    def build(self, image_size: int) -> nn.Module:
        """Raises `UserError` for what is no such module."""
        module = imported(self.name, "backbone.name")(image_size, **self.options)
        if not isinstance(module, nn.Module) or not isinstance(getattr(module, "features", None), int):
            raise UserError(f"backbone.name: {self.name} must give a torch module with `features`, the width it gives")
        return module
