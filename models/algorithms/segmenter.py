"""Semantic segmentation on a pre-trained encoder: FCN with dilated stages, or UPerNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ...errors import UserError
from ...pipelines.spec import Batch
from ...schema.bounds import Chance, Count, Natural, NotNegative, Positive
from ..algorithm import Progress, StepOutput
from ..backbones import ResNet
from ..dense.algorithm import OnMaps
from ..dense.heads import FCNHead, UPerHead, enlarged
from ..dense.maps import Maps, dilate, encoder_for_maps

IGNORED = 255  # the label of pixels that do not count


class Segmenter(OnMaps):
    """Cross entropy of every pixel's class, of the head and, with its weight, of an auxiliary FCN on the third map.

    `Batch.labels` is (B, H, W). As in MMSegmentation the mean is over all pixels, those that do not count with loss 0,
    so that averages over processes are exact.
    """

    @dataclass(frozen=True)
    class Config(OnMaps.Config):
        name: Literal["segmenter"] = "segmenter"
        classes: Count = 21
        head: Literal["fcn", "upernet"] = "fcn"  # fcn takes a ResNet, and dilates it
        channels: Count = 512  # of the head
        convs: Natural = 2  # of fcn
        concat: bool = True  # fcn: the map meets the convolutions' result once more
        dropout: Chance = 0.1
        auxiliary: NotNegative = 0.4  # weight of the auxiliary loss; 0: none
        auxiliary_channels: Count = 256
        align_corners: bool = False
        crop: Count = 512  # of training images, in pixels
        scale: tuple[Count, Count] = (2048, 512)  # long and short side that images are made to fit in, at ratio 1
        ratio: tuple[float, float] = (0.5, 2.0)  # of that in training
        largest_share: Positive = 0.75  # a crop where one class has more is drawn again, ten times at the most
        slide: Count | None = None  # tests move a window of `crop` by so many pixels; null: whole images

        def __post_init__(self) -> None:
            if not 2 <= self.classes <= IGNORED:
                raise ValueError(f"classes: between 2 and {IGNORED}, not {self.classes}")
            if not 0 < self.ratio[0] <= self.ratio[1]:
                raise ValueError(f"ratio: needs 0 < least <= most, got {list(self.ratio)}")
            if self.slide is not None and not 1 <= self.slide <= self.crop:
                raise ValueError(f"slide: between 1 and crop ({self.crop}), not {self.slide}")

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        encoder = encoder_for_maps(config.backbone, config.image_size, config.drop_path)
        if config.head == "fcn":
            if not isinstance(encoder, ResNet):
                raise UserError("algorithm.head: fcn takes a ResNet; use upernet for this encoder")
            dilate(encoder)
        self.maps = Maps(encoder)
        options = {"dropout": config.dropout}
        if config.head == "fcn":
            options |= {"convs": config.convs, "concat": config.concat}
            self.head = FCNHead(self.maps.channels[-1], config.channels, config.classes, **options)
        else:
            self.head = UPerHead(self.maps.channels, config.channels, config.classes, **options)
        self.auxiliary = None
        if config.auxiliary:
            options = {"convs": 1, "concat": False, "dropout": config.dropout}
            self.auxiliary = FCNHead(self.maps.channels[2], config.auxiliary_channels, config.classes, **options)
        if config.crop % self.maps.multiple:
            raise UserError(f"algorithm.crop: {config.crop} px; this encoder takes multiples of {self.maps.multiple}")

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, classes, h, w), coarser than the images."""
        return self._head(self.maps(images))

    def _head(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.head(maps if self.config.head == "upernet" else maps[-1])

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, labels = batch.views["image"][0], batch.labels
        if labels is None or labels.dim() != 3:
            raise UserError("algorithm.name: a segmenter learns from masks of classes; train it with headrace segment")
        labels, maps = labels.long(), self.maps(images)
        loss, best = self._loss(self._head(maps), labels)
        if self.auxiliary is not None:
            loss = loss + self.config.auxiliary * self._loss(self.auxiliary(maps[2]), labels)[0]
        counts = labels != IGNORED
        right = ((best == labels) & counts).sum() / counts.sum().clamp(min=1)
        return StepOutput(loss, {"pixels": right})

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = enlarged(scores.float(), labels.shape[1:], self.config.align_corners)
        loss = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()
        return loss, scores.detach().argmax(1)
