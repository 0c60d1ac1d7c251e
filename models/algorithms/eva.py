"""EVA's objective on MAE's architecture: CLIP's features of hidden patches (Fang et al., arXiv 2211.07636)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view
from ..algorithm import Algorithm, Progress, StepOutput
from ..decoders import MAEDecoder
from ..sample_losses import hidden_mean
from ..smoke import PATCH, SIZE, tiny
from ..targets.clip import CLIPShape, CLIPVision
from ..targets.frozen import RANDOM, Weights
from .mae import MAE


def check_same_grid(config: Algorithm.Config) -> None:
    """Raises `ValueError` where the encoder's patches are not those of CLIP's tower."""
    if (config.view.size, config.backbone.patch_size) != (config.clip.size, config.clip.patch_size):
        raise ValueError(
            f"view: {config.view.size} px in patches of {config.backbone.patch_size}, but CLIP's tower sees "
            f"{config.clip.size} px in patches of {config.clip.patch_size}"
        )


class EVA(MAE):
    """`MAE` that predicts what CLIP's vision tower sees in the hidden patches, instead of their pixels.

    Loss: 2 - 2 cos(prediction, feature), averaged over hidden patches. The tower is given the images as the encoder is.
    """

    no_pictures = "predicts features of CLIP, no pictures"
    sample_loss = "2 - 2 cos(prediction, feature), the mean over its hidden patches"

    @dataclass(frozen=True)
    class Config(MAE.Config):
        name: Literal["eva"] = "eva"
        fixed_size: ClassVar[str] = "CLIP's tower sees one size"
        rgb_only: ClassVar[str] = "has a target of RGB images, CLIP's"
        view: ViewSpec = view("eva")
        clip: CLIPShape = CLIPShape()
        weights: Weights = Weights()  # of CLIP's vision tower

        def __post_init__(self) -> None:
            super().__post_init__()
            check_same_grid(self)

        def smoke(self) -> EVA.Config:
            clip = CLIPShape(SIZE, PATCH, width=32, depth=2, heads=2, features=24)
            decoder = MAEDecoder.Config(width=16, depth=1, heads=2)
            return tiny(self, decoder=decoder, clip=clip, weights=Weights(RANDOM))

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.decoder = self.decoder_of(config.decoder, self.vit.features, self.vit.grid, config.clip.features)
        self.clip = CLIPVision(config.weights, config.clip)

    @staticmethod
    def decoder_of(config: MAEDecoder.Config, features: int, grid: tuple[int, int], outputs: int) -> nn.Module:
        """(B, 1 + K, features) and restore (B, L) -> (B, L, outputs)"""
        return MAEDecoder(config, features, grid, outputs)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        prediction, tokens = self.predict(images, batch.mask)
        features, _ = self.clip(images)
        distance = 2 - 2 * F.cosine_similarity(prediction.float(), features[:, 1:], dim=-1, eps=1e-12)
        loss = (distance * batch.mask.hidden).sum() / batch.mask.hidden.sum()
        per_sample = partial(hidden_mean, distance, batch.mask.hidden)
        seen = {"embedding": tokens.mean(1).detach(), "patches": tokens.detach()}
        return StepOutput(loss=loss, **seen, per_sample=per_sample)

    @property
    def pictures(self) -> None:
        return None
