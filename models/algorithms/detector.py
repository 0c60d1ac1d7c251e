"""Object detection on a pre-trained encoder: Faster R-CNN, or Mask R-CNN, with a feature pyramid or as C4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from ...errors import UserError
from ...pipelines.spec import Batch
from ...schema.bounds import Count
from ..algorithm import Progress, StepOutput
from ..backbones import ResNet
from ..dense.algorithm import OnMaps
from ..dense.maps import Maps, encoder_for_maps
from ..dense.regions import Proposals, Pyramid, c4_heads, fpn_heads


class Detector(OnMaps):
    """Losses of region proposals (`objects`, `anchors`), of regions (`class`, `box`) and of their masks (`mask`).

    `Batch.objects` has for each image {"size": (h, w) inside the padded image, "boxes": (N, 4) float32, edges in
    pixels, "labels": (N,) int64 from 0, "masks": (N, h, w) uint8 where `masks`}.
    """

    equal_shapes = False

    @dataclass(frozen=True)
    class Config(OnMaps.Config):
        name: Literal["detector"] = "detector"
        classes: Count = 80
        masks: bool = True  # Mask R-CNN; false: Faster R-CNN
        # fpn: a pyramid of all stages; c4: of a ResNet, whose last stage sees regions of the map before it
        head: Literal["fpn", "c4"] = "fpn"
        # batch normalisation: fpn, in pyramid and heads, with four convolutions for boxes; c4, after the last stage
        norm: bool = True
        width: Count = 256  # of the pyramid and of what stands on it; four times that in the box branch's layers
        regions: Count = 512  # of an image that the heads learn from, a quarter of them with an object
        short: tuple[Count, ...] = (640, 672, 704, 736, 768, 800)  # sides that training images are scaled to, drawn
        long: Count = 1333  # that no image exceeds
        test_short: Count = 800

        def __post_init__(self) -> None:
            if self.classes < 1:
                raise ValueError(f"classes: at least 1, not {self.classes}")
            if not self.short or min(*self.short, self.test_short) < 1 or self.long < max(*self.short, self.test_short):
                raise ValueError(f"short, long: needs sides between 1 and long ({self.long}), got {list(self.short)}")

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        encoder = encoder_for_maps(config.backbone, config.image_size, config.drop_path)
        self.maps = Maps(encoder, narrow=True)
        options = {"count": config.regions, "width": config.width, "masks": config.masks}
        if config.head == "fpn":
            self.pyramid = Pyramid(self.maps, config.width, config.norm)
            self.proposals = Proposals(config.width, levels=5, before=(2000, 1000), after=(1000, 1000))
            self.heads = fpn_heads(config.classes + 1, **options, norm=config.norm)
        else:
            if not isinstance(encoder, ResNet):
                raise UserError("algorithm.head: c4 takes a ResNet; use fpn for this encoder")
            channels = self.maps.channels[2]
            self.extra_norm = nn.BatchNorm2d(encoder.features) if config.norm else nn.Identity()
            self.proposals = Proposals(channels, levels=1, before=(12000, 6000), after=(2000, 1000))
            options |= {"stage": self._last_stage, "channels": encoder.features}
            self.heads = c4_heads(config.classes + 1, **options)

    def _last_stage(self, regions: torch.Tensor) -> torch.Tensor:
        return self.extra_norm(self.encoder.body.layer4(regions))

    def _features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.config.head == "fpn":
            return self.pyramid(self.maps(images))
        return {"0": self.encoder.stages(images, 3)[-1]}

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        if batch.objects is None:
            raise UserError("algorithm.name: a detector learns from boxes; train it with headrace detect")
        images = ImageList(batch.views["image"][0], [one["size"] for one in batch.objects])
        targets = [{**one, "labels": one["labels"] + 1} for one in batch.objects]  # 0 is the background
        features = self._features(images.tensors)
        boxes, losses = self.proposals(images, features, targets)
        _, found = self.heads(features, boxes, images.image_sizes, targets)
        losses = {"objects": losses["loss_objectness"], "anchors": losses["loss_rpn_box_reg"], **found}
        return StepOutput(sum(losses.values()), {name: loss.detach() for name, loss in losses.items()})

    def detect(self, images: torch.Tensor, sizes: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        """Of each of the images (B, 3, H, W), whose upper left (h, w) = `sizes` are no padding: boxes (N, 4), labels
        (N,) from 0 and scores (N,), best first, and masks (N, 1, 28, 28) or of C4 (N, 1, 14, 14), probabilities inside
        the box. In evaluation mode."""
        padded, features = ImageList(images, sizes), self._features(images)
        boxes, _ = self.proposals(padded, features)
        found, _ = self.heads(features, boxes, sizes)
        return [{**one, "labels": one["labels"] - 1} for one in found]
