"""``headrace detect``: train a detector and a pre-trained encoder under it, and test them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ...errors import UserError
from ...models.algorithms.detector import Detector
from ...pipelines.order import Order
from ...pipelines.sources.coco import CocoSource
from ..engine.distributed import Launch
from ..recipe.recipe import Recipe
from .boxes import Annotated, Picture, collate_for, multiple_of, padded
from .coco import coco_figures, coco_results, coco_truth, encoded
from .loader import AnnotatedLoader, each_once
from .names import places, renamed
from .picture import draw_boxes
from .run import Task, gathered_lists, run
from .voc import voc_figures


def main(argv: list[str] | None = None) -> int:
    task = Task(
        name="detect",
        what="boxes",
        kinds="coco:PATH or voc:PATH",
        about="Object detection on a pre-trained encoder, by Faster or Mask R-CNN.",
        algorithm=Detector,
        fits=lambda source: hasattr(source, "boxes") and bool(source.boxes(0)),
        testable=coco_truth,
        learnable=Annotated,
        batches=batches,
        score=score,
        draw=draw,
    )
    return run(task, argv)


def batches(source: Annotated, algorithm: Detector, order: Order, **share) -> AnnotatedLoader:
    if algorithm.config.masks and source.boxes(0).segments is None:
        raise UserError(
            f"data.train: {source.name} has no masks; take a recipe of Faster R-CNN, or algorithm.masks=false"
        )
    return AnnotatedLoader(source, Picture(algorithm.config), collate_for(algorithm), order, **share)


@torch.inference_mode()
def predict(detector: Detector, sample: dict, device: torch.device) -> dict[str, torch.Tensor]:
    """Of a sample of `Picture`: boxes (N, 4) in pixels of the original image, labels, scores, perhaps masks (N, H, W)
    bool; on the CPU."""
    images = padded([sample["image"]], multiple_of(detector)).to(device)
    (found,) = detector.detect(images, [sample["size"]])
    height, width = sample["original"]
    scale = found["boxes"].new_tensor([width / sample["size"][1], height / sample["size"][0]] * 2)
    found["boxes"] = found["boxes"] * scale
    if "masks" in found:
        found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], (height, width))[:, 0] > 0.5
    return {key: value.cpu() for key, value in found.items()}


def score(
    trained: Detector, source: Any, recipe: Recipe, process: Launch, threads: int, names: Sequence[str]
) -> tuple[list[dict], dict] | None:
    share = {"threads": threads, "rank": process.rank, "world": process.world}
    own, table = [], places(names, source.categories)
    for index, sample in each_once(source, Picture(trained.config), **share):
        found = renamed(predict(trained, sample, process.device), table)
        if "masks" in found:
            found["runs"] = encoded(found.pop("masks"))
        own.append((index, found))
    found = dict(gathered_lists(own, process))
    if not process.is_main:
        return None
    return figures(source, [found[index] for index in range(len(source))]), {}


def figures(source: Any, found: list[dict]) -> list[dict]:
    """Rows for boxes and, where there are any, masks, of the detections of every image of the source."""
    truth = coco_truth(source)
    results = [one for index in range(len(source)) for one in coco_results(source, index, found[index])]
    if isinstance(source, CocoSource):
        kinds = {"boxes": "bbox"} | ({"masks": "segm"} if "runs" in found[0] else {})
        return [{"of": name, **coco_figures(truth, results, kind)} for name, kind in kinds.items()]
    arrays = [{key: value.numpy() for key, value in one.items()} for one in found]
    own = voc_figures([source.boxes(index) for index in range(len(source))], arrays, len(source.categories))
    coco = coco_figures(truth, results, "bbox")
    return [{**own, "AP (COCO)": coco["AP"], "AP75 (COCO)": coco["AP75"]}]


def draw(trained: Detector, source: Any, device: torch.device, file: Path, names: Sequence[str]) -> None:
    found, table = [], places(names, source.categories)
    for index, sample in itertools.islice(each_once(source, Picture(trained.config), threads=1, rank=0, world=1), 6):
        one = renamed(predict(trained, sample, device), table)
        sure = one["scores"] >= 0.5
        found.append((index, {key: value[sure] for key, value in one.items()}))
    draw_boxes(source, found, file)
