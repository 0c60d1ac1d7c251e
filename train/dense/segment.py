"""``headrace segment``: train a segmentation head and a pre-trained encoder under it, and test them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...models.algorithms.segmenter import Segmenter
from ...models.dense.heads import enlarged
from ...pipelines.order import Order
from ...pipelines.sources.segmentation import IGNORED
from ..engine.distributed import Launch
from ..recipe.recipe import Recipe
from .confusion import class_ious, confusion, segmentation_figures
from .loader import AnnotatedLoader, each_once
from .masks import Scene, collate
from .names import places
from .picture import draw_masks
from .run import Task, run, to_patches


def main(argv: list[str] | None = None) -> int:
    task = Task(
        name="segment",
        what="masks of classes",
        about="Semantic segmentation on a pre-trained encoder, by FCN or UPerNet.",
        algorithm=Segmenter,
        kinds="voc12aug:PATH, cityscapes:PATH or ade20k:PATH",
        fits=lambda source: hasattr(source, "target") and source.target(0).ndim == 2,
        testable=lambda source: None,
        learnable=lambda source: source,
        batches=batches,
        score=score,
        draw=draw,
    )
    return run(task, argv)


def batches(source: Any, algorithm: Segmenter, order: Order, **share) -> AnnotatedLoader:
    return AnnotatedLoader(source, Scene(algorithm.config), collate, order, **share)


@torch.inference_mode()
def predict(segmenter: Segmenter, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Classes (H, W) = `size` of an image (3, h, w), all of it at once or by a sliding window whose scores are averaged
    where windows overlap."""
    config, multiple = segmenter.config, segmenter.maps.multiple
    resized = partial(enlarged, align_corners=config.align_corners)

    def scores(part: torch.Tensor) -> torch.Tensor:
        padded = to_patches(part, multiple)
        return resized(segmenter.scores(padded).float(), padded.shape[-2:])[..., : part.shape[-2], : part.shape[-1]]

    images = image[None]
    if config.slide is None:
        return resized(scores(images), size)[0].argmax(0)
    total = images.new_zeros(1, config.classes, *images.shape[-2:])
    counts = images.new_zeros(images.shape[-2:])
    starts = (window_starts(side, config.crop, config.slide) for side in images.shape[-2:])
    for top, left in itertools.product(*starts):
        window = (slice(top, top + config.crop), slice(left, left + config.crop))
        total[..., window[0], window[1]] += scores(images[..., window[0], window[1]])
        counts[window] += 1
    return resized(total / counts, size)[0].argmax(0)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every `stride` pixels, the last one moved back so that it ends with the image."""
    last = max(0, side - window)
    return [min(start, last) for start in range(0, last + stride, stride)] if last else [0]


def score(
    trained: Segmenter, source: Any, recipe: Recipe, process: Launch, threads: int, names: Sequence[str]
) -> tuple[list[dict], dict] | None:
    share = {"threads": threads, "rank": process.rank, "world": process.world}
    classes, table = trained.config.classes, _numbers(source, names)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=process.device)
    for _, sample in each_once(source, Scene(trained.config), **share):
        truth = table[sample["mask"].long()].to(process.device)
        matrix += confusion(predict(trained, sample["image"].to(process.device), truth.shape), truth, classes)
    if process.world > 1:
        dist.all_reduce(matrix)
    ious = dict(zip(names, class_ious(matrix.cpu())))
    return [segmentation_figures(matrix.cpu())], {"IoU": ious}


def draw(trained: Segmenter, source: Any, device: torch.device, file: Path, names: Sequence[str]) -> None:
    found, table = [], _numbers(source, names)
    for index, sample in itertools.islice(each_once(source, Scene(trained.config), threads=1, rank=0, world=1), 6):
        found.append(
            (
                index,
                predict(trained, sample["image"].to(device), sample["mask"].shape).cpu(),
                table[sample["mask"].long()],
            )
        )
    draw_masks(source, found, file, len(names))


def _numbers(source: Any, names: Sequence[str]) -> torch.Tensor:
    """(256,) uint8: the classes of a source's masks as numbers of the segmenter's `names`, of the others `IGNORED`."""
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    table[: len(source.categories)] = torch.from_numpy(places(source.categories, names)).to(torch.uint8)
    return table
