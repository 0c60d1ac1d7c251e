"""Faster and Mask R-CNN of torchvision's parts, with what published protocols for self-supervised encoders add.

Losses are sums over samples divided by the mean number of samples of a process, so that averages over processes are the
loss of the global batch; boxes are regressed with L1, as in MMDetection. Scores and offsets are made float32 before
boxes come of them: in bfloat16 a coordinate of 1,000 px would be rounded to 8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..distributed import shared_count
from .maps import LayerNorm2d, Maps

_SIZES = (32, 64, 128, 256, 512)  # sides of anchors, in pixels


class Pyramid(nn.Module):
    """Maps at strides 4 to 64 with one width: {"0": (B, width, H / 4, W / 4), ..., "pool": ...}.

    Of an encoder with several stages a feature pyramid (arXiv 1612.03144), `norm`: with batch normalisation; of a plain
    ViT two convolutions with layer normalisation on each map (ViTDet, arXiv 2203.16527).
    """

    def __init__(self, maps: Maps, width: int, norm: bool) -> None:
        super().__init__()
        if maps.scales is None:
            layer = nn.BatchNorm2d if norm else None
            self.fpn = FeaturePyramidNetwork(maps.channels, width, LastLevelMaxPool(), norm_layer=layer)
        else:
            self.fpn = None
            self.levels = nn.ModuleList(_simple(inputs, width) for inputs in maps.channels)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.fpn is not None:
            return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps)))
        found = {str(level): block(x) for level, (block, x) in enumerate(zip(self.levels, maps))}
        return found | {"pool": F.max_pool2d(found["3"], 1, 2)}


def _simple(inputs: int, width: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, width, 1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width))


class Proposals(RegionProposalNetwork):
    """torchvision's region proposal network (arXiv 1506.01497) with this module's losses."""

    def __init__(self, channels: int, *, levels: int, before: tuple[int, int], after: tuple[int, int]) -> None:
        """`before` and `after`: proposals kept before and after suppression, in training and in tests."""
        sizes = tuple((size,) for size in _SIZES) if levels > 1 else (_SIZES,)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels)
        kept = ({"training": training, "testing": testing} for training, testing in (before, after))
        head = _FloatHead(channels, anchors.num_anchors_per_location()[0])
        super().__init__(anchors, head, 0.7, 0.3, 256, 0.5, *kept, nms_thresh=0.7)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(found).bool() for found in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = shared_count(sampled.sum())
        wanted = torch.cat(labels)[sampled]
        found = objectness.flatten()[sampled]
        boxes = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        return F.binary_cross_entropy_with_logits(found, wanted, reduction="sum") / count, boxes / count


class _FloatHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, offsets = super().forward(x)
        return [one.float() for one in scores], [one.float() for one in offsets]


class Heads(RoIHeads):
    """torchvision's box and mask heads with this module's losses, and `shared`, which regions go through first.

    `count`: regions of an image that are learned from. `shared` None: box and mask branches pool their own regions.
    Else, as in C4, the box branch's regions went through it, and in training the mask branch takes positive
    ones of those.
    """

    def __init__(self, *, count: int, shared: Callable[[Tensor], Tensor] | None = None, **parts: nn.Module) -> None:
        super().__init__(
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=count,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **parts,
        )
        self.shared = shared

    def regions(self, pool: nn.Module, features: dict, boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        pooled = pool(features, boxes, shapes)
        return pooled if self.shared is None else self.shared(pooled)

    def forward(self, features, proposals, image_shapes, targets=None):
        """([], losses) in training, (detections, {}) in tests, as in torchvision."""
        if self.training:
            proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        regions = self.regions(self.box_roi_pool, features, proposals, image_shapes)
        scores, offsets = (x.float() for x in self.box_predictor(self.box_head(regions)))
        if not self.training:
            found = self.postprocess_detections(scores, offsets, proposals, image_shapes)
            results = [dict(zip(("boxes", "scores", "labels"), one)) for one in zip(*found)]
            if self.has_mask():
                boxes = [one["boxes"] for one in results]
                regions = self.regions(self.mask_roi_pool, features, boxes, image_shapes)
                masks = self.mask_predictor(self.mask_head(regions)).float()
                for one, own in zip(results, maskrcnn_inference(masks, [one["labels"] for one in results])):
                    one["masks"] = own
            return results, {}
        losses = self._box_losses(scores, offsets, torch.cat(labels), torch.cat(wanted))
        if self.has_mask():
            positive = [one > 0 for one in labels]
            boxes = [one[rows] for one, rows in zip(proposals, positive)]
            if self.shared is None:
                regions = self.regions(self.mask_roi_pool, features, boxes, image_shapes)
            else:
                regions = regions[torch.cat(positive)]
            masks = self.mask_predictor(self.mask_head(regions)).float()
            true = [one["masks"] for one in targets], [one["labels"] for one in targets]
            loss = maskrcnn_loss(masks, boxes, *true, [one[rows] for one, rows in zip(matched, positive)])
            losses["mask"] = loss * len(masks) / shared_count(masks.new_tensor(len(masks)))
        return [], losses

    def _box_losses(self, scores: Tensor, offsets: Tensor, labels: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        count = shared_count(scores.new_tensor(len(labels)))
        positive = torch.where(labels > 0)[0]
        own = offsets.view(len(labels), -1, 4)[positive, labels[positive]]
        return {
            "class": F.cross_entropy(scores, labels, reduction="sum") / count,
            "box": F.l1_loss(own, wanted[positive], reduction="sum") / count,
        }


def fpn_heads(classes: int, *, count: int, width: int, masks: bool, norm: bool) -> Heads:
    """Of `classes`, the background among them. `norm`: boxes by four convolutions and a layer, with batch normalisation
    there and in the mask branch; else by two layers, without."""
    layer, hidden = nn.BatchNorm2d if norm else None, 4 * width
    align = partial(MultiScaleRoIAlign, ["0", "1", "2", "3"], sampling_ratio=2)
    if norm:
        head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [hidden], norm_layer=layer)
    else:
        head = TwoMLPHead(width * 49, hidden)
    parts = {
        "box_roi_pool": align(output_size=7),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(hidden, classes),
    }
    if masks:
        parts["mask_roi_pool"] = align(output_size=14)
        parts["mask_head"] = MaskRCNNHeads(width, [width] * 4, 1, norm_layer=layer)
        parts["mask_predictor"] = MaskRCNNPredictor(width, width, classes)
    return Heads(count=count, **parts)


def c4_heads(
    classes: int, *, count: int, width: int, masks: bool, stage: Callable[[Tensor], Tensor], channels: int
) -> Heads:
    """Regions of 14 x 14 cells of the third stage's map go through `stage`, the last one, which gives `channels`;
    `width` is that of the mask branch."""
    align = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts = {"box_roi_pool": align, "box_head": head, "box_predictor": FastRCNNPredictor(channels, classes)}
    if masks:
        parts |= {"mask_roi_pool": align, "mask_head": nn.Identity()}
        parts["mask_predictor"] = MaskRCNNPredictor(channels, width, classes)
    return Heads(count=count, shared=stage, **parts)
