"""What detection and segmentation have in common: a pre-trained encoder, whose maps heads stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...pipelines.spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec, ViewSpec
from ...schema.bounds import Chance, Count, Positive
from ..algorithm import Algorithm
from ..backbones import AnyBackboneConfig
from ..weights import load_weights
from .maps import Maps


class OnMaps(Algorithm):
    """Base of what learns with labels on an encoder's maps; a subclass makes the heads and sets `self.maps`."""

    maps: Maps

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        rgb_only: ClassVar[str] = "reads RGB images with annotations"
        backbone: AnyBackboneConfig | None = None  # null: that of the encoder which the command is given
        image_size: Count = 224  # what the encoder was trained on
        drop_path: Chance | None = None  # of the encoder, in place of its own
        weights: str | None = None  # encoder.safetensors; null: from scratch
        fresh: tuple[str, ...] = ()  # parameters of the encoder that start anew all the same
        mean: tuple[float, float, float] = IMAGENET_MEAN
        std: tuple[Positive, Positive, Positive] = IMAGENET_STD

    def prepare(self, samples: int) -> None:
        if self.config.weights is not None:
            load_weights(self.encoder, self.config.weights, self.config.fresh)

    @property
    def encoder(self) -> nn.Module:
        return self.maps.encoder

    def inputs(self) -> InputSpec:
        return InputSpec(views=(ViewSpec(size=self.config.image_size, mean=self.config.mean, std=self.config.std),))
