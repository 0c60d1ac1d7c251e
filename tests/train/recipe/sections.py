"""What tests of recipes share: two backbones to choose from, and a recipe x.yaml built or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from headrace.errors import UserError
from headrace.train.recipe import config


@dataclass(frozen=True)
class VitConfig:
    name: Literal["vit_tiny", "vit_small"] = "vit_tiny"
    patch_size: int = 16


@dataclass(frozen=True)
class ResNetConfig:
    name: Literal["resnet18", "resnet50"] = "resnet18"
    small_image_stem: bool = False


def build(types: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return config.build(config.load("x.yaml", overrides), types)


def problems(call, *args, **kwargs) -> list[str]:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value).split("\n")
