"""``headrace dense-linear``: classes of pixels by one linear layer on an encoder's patches."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...models.dense.heads import classifier, enlarged
from ...pipelines.order import Order
from ...pipelines.sources.segmentation import IGNORED
from ..dense.confusion import class_ious, confusion, segmentation_figures
from ..engine.distributed import launch, pick_device
from ..evaluation.evaluate import Stopwatch, positive, record, table
from ..recipe.schedules import learning_rates
from .features import PatchSet, add_arguments, described, encoder_of, opened, patch_sets

_WARMUP = 1500 / 40_000  # of the steps, as published


def fit_head(
    train: PatchSet,
    classes: int,
    *,
    steps: int,
    batch_size: int = 16,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> nn.Module:
    """Batch normalisation and a layer on every patch, (B, D, rows, columns) -> (B, classes, rows, columns).

    As DINOv2's linear segmentation (arXiv 2304.07193, section 7.4): scores are enlarged bilinearly to the square that
    the encoder saw, and the loss is the mean cross entropy of its pixels, 0 for those without a class; AdamW, a rate
    that rises and falls in straight lines. Without its crops and colours: features are those of whole images.
    Raises `UserError` where a batch has one patch in all.
    """
    batch_size = min(batch_size, len(train))
    if batch_size * train.vectors.shape[1] < 2:
        raise UserError("--size: one image with one patch has no statistics; give a larger one, or more images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.BatchNorm2d(train.vectors.shape[2]), classifier(train.vectors.shape[2], classes))
    head = head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    options = {"schedule": "poly", "power": 1.0, "warmup": round(_WARMUP * steps), "warmup_from": 1e-6}
    rates, order = learning_rates(lr, steps, 1, **options), Order(len(train), batch_size, seed)
    cells = max(1, train.side // max(train.grid))
    with ThreadPoolExecutor(threads) as pool:
        for step, rate in enumerate(rates.tolist()):
            ids = order.ids(step)
            masks = pool.map(lambda index: train.squashed(index, cells), ids.tolist())
            scores = head(maps_of(train, ids).to(device))
            truth = torch.from_numpy(np.stack(list(masks))).long().to(device)
            loss = F.cross_entropy(enlarged(scores, truth.shape[1:]), truth, ignore_index=IGNORED, reduction="sum")
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (loss / truth.numel()).backward()
            optimizer.step()
    return head.eval()


def maps_of(patches: PatchSet, ids: torch.Tensor) -> torch.Tensor:
    """(B, D, rows, columns) of images `ids` (B,)."""
    return patches.vectors[ids].transpose(1, 2).unflatten(2, patches.grid)


@torch.inference_mode()
def confusion_of(head: nn.Module, val: PatchSet, classes: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(classes, classes) int64: see `confusion`, of all pixels at the size of the masks."""
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for index in range(len(val)):
        truth = torch.from_numpy(val.mask(index)).to(device)
        scores = head(maps_of(val, torch.tensor([index])).to(device))
        matrix += confusion(enlarged(scores, truth.shape)[0].argmax(0), truth, classes)
    return matrix.cpu()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace dense-linear",
        description="Semantic segmentation by batch normalisation and one linear layer on a frozen encoder's patches.",
    )
    add_arguments(parser)
    parser.add_argument("--steps", type=positive, default=2000, help="of training; 40,000 as published (2000)")
    parser.add_argument("--head-batch", type=positive, default=16, help="images of a step (16)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (0.001)")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="(0.0001)")
    arguments = parser.parse_args(argv)
    if arguments.lr <= 0 or arguments.weight_decay < 0:
        raise UserError("--lr, --weight-decay: rates are positive, decays not negative")

    watch, sources = Stopwatch(), opened(arguments)
    found = encoder, _, grid = encoder_of(arguments)
    classes = len(sources[0].categories)
    with launch(pick_device(arguments.device)) as process:
        train, val = patch_sets(arguments, process, sources, found)
    if not process.is_main:  # one layer takes one process
        return 0
    fitting = {"steps": arguments.steps, "batch_size": min(arguments.head_batch, len(train))}
    fitting |= {"lr": arguments.lr, "weight_decay": arguments.weight_decay, "seed": arguments.seed}
    place = {"device": process.device, "threads": arguments.threads or process.cores}
    head = fit_head(train, classes, **fitting, **place)
    matrix = confusion_of(head, val, classes, process.device)
    figures = segmentation_figures(matrix)
    data, settings = described(arguments, grid, sources)
    ious = dict(zip(sources[0].categories, class_ious(matrix)))
    record(arguments.results, "dense-linear", encoder, data, settings | fitting, figures | {"IoU": ious}, watch)
    title = f"linear on patches, {grid[0]} x {grid[1]} an image, {len(train):,} images to learn from, {len(val):,} more"
    table(f"{title}, {encoder.name}", [figures])
    return 0
